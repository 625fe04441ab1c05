package integration

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// Consumers that are reserved before media are encoded count for policies that go by load: requests
// that arrive while encoders work are spread over them.
func TestConsumersAreSpread(t *testing.T) {
	t.Parallel()
	for topology, n := range map[string][3]int{"E+PD": {1, 0, 2}, "E+P+D": {1, 2, 1}} {
		t.Run(topology, func(t *testing.T) {
			t.Parallel()
			const requests = 20
			role := consuming(n[1])
			e := startEngines(t, n[0], n[1], n[2], modern, consumers(role, 1))
			c := startCaddy(t, e.block(string(role)+" lb_policy least_conn", e.pushing(role, 1)))
			release := c.hold(t, e, requests, func(i int) string { return chat("", image(fmt.Sprintf("%04d", i))) })
			for _, r := range release() {
				assert.Equal(t, http.StatusOK, r.StatusCode, string(r.body))
			}
			for _, engine := range e.of(role) {
				assert.InDelta(t, requests/2, len(engine.Requests()), 1)
			}
			e.assertContract(t)
			c.assertNoLeaks(t)
		})
	}
}

// Slow encoders do not occupy a consumer's slots for requests without media.
func TestConsumersAreNotHeldByEncoders(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern, consumers(fakevllm.Decode, 1))
	c := startCaddy(t, e.block("decode_limit 2", "queue_timeout 20s", e.pushing(fakevllm.Decode, 1)))
	release := c.hold(t, e, 3, func(i int) string { return chat("", image(fmt.Sprintf("%04d", i))) })
	start := time.Now()
	assert.Equal(t, http.StatusOK, c.do(t, http.MethodPost, chatPath, chat("", text("hello"))).StatusCode)
	assert.Less(t, time.Since(start), 10*time.Second)
	for _, r := range release() {
		assert.Equal(t, http.StatusOK, r.StatusCode, string(r.body))
	}
	e.assertContract(t)
	c.assertNoLeaks(t)
}

// A consumer that is busy when the encoders are done is left for one that has a free slot.
func TestBusyConsumerIsLeft(t *testing.T) {
	t.Parallel()
	for topology, n := range map[string][3]int{"E+PD": {1, 0, 2}, "E+P+D": {1, 2, 1}} {
		t.Run(topology, func(t *testing.T) {
			t.Parallel()
			role := consuming(n[1])
			e := startEngines(t, n[0], n[1], n[2], modern, consumers(role, 1))
			c := startCaddy(t, e.block(string(role)+" lb_policy first", string(role)+"_limit 1", "queue_timeout 60s", e.pushing(role, 1)))
			reserved, other := e.of(role)[0], e.of(role)[1]
			release := c.hold(t, e, 1, func(int) string { return chat("", image("AAAA")) })
			reserved.SetFault(fault{Kind: fakevllm.Hang, Match: "hello"})
			waiting := make(chan *reply, 1)
			go func() { waiting <- c.post(t, chat("", text("hello"))) }()
			eventually(t, func() bool { return busy(reserved) == 1 })
			for _, r := range release() {
				assert.Equal(t, http.StatusOK, r.StatusCode, string(r.body))
			}
			assert.Len(t, other.Requests(), 1)
			encoded, _, _ := e.requests()
			assert.Equal(t, 2, encoded, "for each of the two")
			reserved.SetFault(fault{})
			assert.Equal(t, http.StatusOK, (<-waiting).StatusCode)
			e.assertContract(t)
			c.assertNoLeaks(t)
		})
	}
}

// hold sends requests, one after the other, that encoders hold until release is called;
// release returns the answers.
func (c *caddy) hold(t *testing.T, e *engines, n int, body func(i int) string) (release func() []*reply) {
	t.Helper()
	for _, encoder := range e.encode {
		encoder.SetFault(fault{Kind: fakevllm.Hang, Match: "image_url"})
	}
	var replies []chan *reply
	for i := range n {
		answered := make(chan *reply, 1)
		go func() { answered <- c.post(t, body(i)) }()
		replies = append(replies, answered)
		eventually(t, func() bool { return busy(e.encode...) == i+1 })
	}
	return func() (all []*reply) {
		for _, encoder := range e.encode {
			encoder.SetFault(fault{})
		}
		for _, r := range replies {
			all = append(all, <-r)
		}
		return all
	}
}
