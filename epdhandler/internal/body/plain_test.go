package body

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// plain finds what is not plain wherever it is, whatever comes behind it.
func TestPlain(t *testing.T) {
	var lengths []int // all short ones, and those around where plainLong takes another block
	for n := range 300 {
		lengths = append(lengths, n)
	}
	for border, block := longRun, 2*longRun; border+block <= 2*maxBlock; block = min(2*block, maxBlock) {
		border += block
		for n := border - 70; n <= border+70; n++ {
			lengths = append(lengths, n)
		}
	}
	for _, special := range []string{"", `"`, `\`, "\n", "\x00", "\x1f", "\x80", "é", "\xff"} {
		for _, behind := range []string{"", "A", `A"`, `\"`, "é", string(bytes.Repeat([]byte("A\"\\\x01é"), 40))} {
			if special == "" && behind != "" {
				continue
			}
			for _, n := range lengths {
				text := append(bytes.Repeat([]byte("~ !#[]aZ"), n/8+1)[:n], special+behind...)
				if got := plain(text, 0); got != n {
					require.Equal(t, n, got, "%q, then %q", special, behind)
				}
			}
		}
	}
}

// FuzzPlain holds plain against the same, one byte at a time.
func FuzzPlain(f *testing.F) {
	f.Add(uint16(200), []byte("ABC\"\\"))
	f.Add(uint16(20_000), []byte("é\x00"))
	f.Fuzz(func(t *testing.T, run uint16, in []byte) {
		text := append(bytes.Repeat([]byte("x"), int(run)), in...)
		want := 0
		for want < len(text) && text[want] != '"' && text[want] != '\\' && text[want] >= 0x20 && text[want] < 0x80 {
			want++
		}
		require.Equal(t, want, plain(text, 0))
	})
}
