package media

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
	{"10000 parts 0.4MB", chat(repeat(says("a"), 10_000)...)},
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
				if _, _, err := ParseChat(raw, 128, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdentify is what uuids for the media of a request cost, with references.
func BenchmarkIdentify(b *testing.B) {
	raw := []byte(chat(repeat(`{"image_url":"data:image/png;base64,`+strings.Repeat("iVBORw0KGgo/", 2_700_000/12)+`"}`, 4)...))
	_, set, err := ParseChat(raw, 4, false)
	require.NoError(b, err)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		set.identify("")
	}
}
