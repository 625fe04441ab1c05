package body

import (
	"strings"
	"testing"
)

// samples are requests of all kinds.
var samples = []struct{ name, body string }{
	{"text 2kB", prompt(strings.Repeat(`What is to be seen here? \"Nothing.\"\n`, 50))},
	{"base64 2.7MB", prompt(strings.Repeat("iVBORw0KGgo/", 2_700_000/12))},
	{"Chinese 1MB", prompt(strings.Repeat("图中有什么？", 1<<20/18))},
	{"French 1MB", prompt(strings.Repeat("Il y avait une fois, dans un pays très lointain, où personne n'était jamais allé, ", 1<<20/86))},
	{"long lines 1MB", prompt(strings.Repeat(strings.Repeat("0123456789", 30)+`\n`, 1<<20/302))},
	{"numbers 1MB", `{"prompt":[` + strings.Repeat("123456,", 1<<20/7) + `1]}`},
}

func prompt(text string) string { return `{"prompt":"` + text + `"}` }

func BenchmarkParse(b *testing.B) {
	for _, sample := range samples {
		b.Run(sample.name, func(b *testing.B) {
			raw := []byte(sample.body)
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRewrite(b *testing.B) {
	for _, sample := range samples {
		b.Run(sample.name, func(b *testing.B) {
			parsed, err := Parse([]byte(sample.body))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				parsed.Rewrite(Set("stream", "false"), Set("max_tokens", "1"), Set(KVTransferParams, "{}"), Remove("stream_options"))
			}
		})
	}
}
