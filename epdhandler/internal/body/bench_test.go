package body

import (
	"fmt"
	"strings"
	"testing"
)

// picture is an image part with so many bytes of base64.
func picture(size int) string {
	return fmt.Sprintf(`{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}`, strings.Repeat("iVBORw0KGgo/", size/12))
}

// samples are requests of all kinds.
var samples = []struct{ name, body string }{
	{"text 2kB", chat(says(strings.Repeat(`What is to be seen here? \"Nothing.\"\n`, 50)))},
	{"1 image 134kB", chat(says("What?"), picture(134_000))},
	{"4 images 2.7MB", chat(says("What?"), picture(2_700_000), picture(2_700_000), picture(2_700_000), picture(2_700_000))},
	{"128 images 80kB", chat(repeat(picture(80_000), 128)...)},
	{"Chinese 1MB", chat(says(strings.Repeat("图中有什么？", 1<<20/18)))},
	{"French 1MB", chat(says(strings.Repeat("Il y avait une fois, dans un pays très lointain, où personne n'était jamais allé, ", 1<<20/86)))},
	{"long lines 1MB", chat(says(strings.Repeat(strings.Repeat("0123456789", 30)+`\n`, 1<<20/302)))},
	{"10000 parts 0.4MB", chat(repeat(says("a"), 10_000)...)},
	{"numbers 1MB", `{"messages":[],"prompt":[` + strings.Repeat("123456,", 1<<20/7) + `1]}`},
}

func says(text string) string { return `{"type":"text","text":"` + text + `"}` }

func repeat(part string, n int) []string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = part
	}
	return parts
}

func BenchmarkParseChat(b *testing.B) {
	for _, sample := range samples {
		b.Run(sample.name, func(b *testing.B) {
			raw := []byte(sample.body)
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseChat(raw, 128, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRewrite(b *testing.B) {
	for _, sample := range samples {
		b.Run(sample.name, func(b *testing.B) {
			parsed, err := ParseChat([]byte(sample.body), 128, false)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				parsed.Rewrite(Set(Stream, "false"), Set(MaxTokens, "1"), Set(KVTransferParams, "{}"), Remove(StreamOptions))
			}
		})
	}
}
