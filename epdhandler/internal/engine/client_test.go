package engine

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Engines get the headers of a client, but none that belong to its connection or its body, nor,
// unless it is trusted, those that steer engines.
func TestForwarded(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	for _, name := range []string{"Authorization", "X-Other", "User-Agent"} {
		h.Set(name, "end to end")
	}
	for _, name := range []string{"Content-Length", "Content-Encoding", "If-None-Match", "Transfer-Encoding", "Te", "Expect", "Upgrade", "Range", "Idempotency-Key", "X-Idempotency-Key", "X-Named"} {
		h.Set(name, "not")
	}
	h["Connection"] = []string{"close, X-Named"}
	steering := []string{"X-Vllm-Priority", "X-Data-Parallel-Rank", "X-Prefiller-Host-Port", "X-Llm-D-Any", "X-Dynamo-Any", "X-Gateway-Destination-Endpoint-Subset"}
	for _, name := range steering {
		h.Set(name, "steers")
	}
	before := h.Clone()

	end2end := http.Header{"Authorization": {"end to end"}, "X-Other": {"end to end"}, "User-Agent": {"end to end"}}
	assert.Equal(t, end2end, forwarded(h, false))
	for _, name := range steering {
		end2end.Set(name, "steers")
	}
	assert.Equal(t, end2end, forwarded(h, true))
	assert.Equal(t, before, h)
}

// A call has its own id, encoding and content type, and the query of the client stays here.
func TestRequestOfCall(t *testing.T) {
	t.Parallel()
	got := make(chan *http.Request, 1)
	p, err := newPool(t, "decode", one(fakeEngine(t, func(_ http.ResponseWriter, r *http.Request) { got <- r })))
	require.NoError(t, err)
	client := newClient(http.Header{"X-Request-Id": {"client's"}, "Accept-Encoding": {"br"}, "Content-Type": {"text/html"}, "X-Data-Parallel-Rank": {"7"}})
	_, segments := bodyOfSize(t, 100)
	a, _ := send(t, p, client, Call{Body: segments, Encoding: []string{"identity"}, Reserved: &Reservation{Address: p.Handler.Upstreams[0].Dial, Rank: "2"}})
	require.False(t, a.Failed(), "%v", a.Cause)
	r := <-got
	assert.Equal(t, "/v1/chat/completions", r.URL.String())
	for name, want := range map[string]string{"X-Request-Id": "test-1", "Accept-Encoding": "identity", "Content-Type": "application/json", "X-Data-Parallel-Rank": "2"} {
		assert.Equal(t, []string{want}, r.Header[name])
	}
	assert.Equal(t, "client's", client.Request.Header.Get("X-Request-Id"))
}
