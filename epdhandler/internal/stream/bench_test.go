package stream

import (
	"net/http"
	"testing"
)

// noClient is a client that costs nothing.
type noClient struct{ header http.Header }

func (c noClient) Header() http.Header       { return c.header }
func (noClient) WriteHeader(int)             {}
func (noClient) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkResponse is a stream of a hundred chunks, whose usage is to be corrected.
func BenchmarkResponse(b *testing.B) {
	role, chunk, done := []byte(roleEvent), []byte(chunkEvent), []byte(doneEvent)
	cached := 3
	b.ReportAllocs()
	for b.Loop() {
		w := NewResponse(Config{
			Client: noClient{make(http.Header)}, RequestID: "id", Streamed: true, CachedTokens: func() *int { return &cached }, Silence: new(Silence),
			Accept: func(int) bool { return true }, OnCommit: func(int, bool) {}, Stop: func() {},
		})
		w.Header().Set("Content-Type", eventStream)
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(role)
		for range 100 {
			_, _ = w.Write(chunk)
		}
		_, _ = w.Write(done)
		w.End(Complete)
	}
}
