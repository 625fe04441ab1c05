package epdhandler

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkRequest measures a whole request through Caddy, by E+P+D with two encoders, over
// plain HTTP/1.1 on loopback. Client and engines run in the same process and add to the
// time: use the results for comparisons and profiles.
func BenchmarkRequest(b *testing.B) {
	fake := func() string {
		return fakeEngine(b, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"id":"x","choices":[{"message":{"role":"assistant","content":"hello"}}],"kv_transfer_params":{"remote_host":"h","remote_block_ids":[1,2,3]}}`)
		})
	}
	port := freePort(b)
	serve(b, port, "", pools{"encode": {fake(), fake()}, "prefill": {fake()}, "decode": {fake()}})
	url := fmt.Sprintf("http://127.0.0.1:%d%s", port, chatPath)
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
				res, err := http.Post(url, "application/json", strings.NewReader(body))
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
