package epdhandler

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/require"
)

// BenchmarkRequest is a whole request through Caddy, by E+P+D with two encoders, over
// plain HTTP/1.1 on loopback. Client and engines are in the same process and take part
// of the time: compare, and profile.
func BenchmarkRequest(b *testing.B) {
	engine := func(answer string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			if strings.HasPrefix(answer, "data:") {
				w.Header().Set("Content-Type", "text/event-stream")
			}
			_, _ = io.WriteString(w, answer)
		}))
		b.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	const answer = `{"id":"x","choices":[{"message":{"role":"assistant","content":"hello"}}],"kv_transfer_params":{"remote_host":"h","remote_block_ids":[1,2,3]}}`
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	addr := l.Addr().String()
	require.NoError(b, l.Close())
	require.NoError(b, caddy.Load(fmt.Appendf(nil, `{
		"admin": {"disabled": true}, "logging": {"logs": {"default": {"level": "ERROR"}}},
		"apps": {"http": {"servers": {"s": {"listen": ["%s"], "automatic_https": {"disable": true}, "routes": [{"handle": [{
			"handler": "epd_proxy",
			"encode": {"upstreams": [{"dial": "%s"}, {"dial": "%s"}]}, "prefill": {"upstreams": [{"dial": "%s"}]}, "decode": {"upstreams": [{"dial": "%s"}]}
		}]}]}}}}
	}`, addr, engine(answer), engine(answer), engine(answer), engine(answer)), true))
	b.Cleanup(func() { require.NoError(b, caddy.Stop()) })

	image := func(size int) string {
		return fmt.Sprintf(`,{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}`, strings.Repeat("iVBORw0KGgo/", size/12))
	}
	for name, media := range map[string]string{
		"text":               "",
		"1 image of 134 kB":  image(134_000),
		"4 images of 2.7 MB": strings.Repeat(image(2_700_000), 4),
	} {
		body := `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"What is this?"}` + media + `]}],"max_tokens":100}`
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				res, err := http.Post("http://"+addr+"/v1/chat/completions", "application/json", strings.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				if res.StatusCode != http.StatusOK {
					b.Fatal(res.Status)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		})
	}
}
