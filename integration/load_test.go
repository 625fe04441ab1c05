package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

const (
	waitLong = 20 * time.Second
	tick     = 10 * time.Millisecond
)

// crowd has clients send this many requests each, and checks every answer.
func (c *caddy) crowd(t *testing.T, client *http.Client, clients, each int, request func(n int) string) {
	t.Helper()
	c.crowdWith(t, clients, each, func(n int) error { return c.check(t, client, request(n)) })
}

// crowdWith has clients do something this many times each.
func (c *caddy) crowdWith(t *testing.T, clients, each int, do func(n int) error) {
	t.Helper()
	var wg sync.WaitGroup
	for who := range clients {
		wg.Go(func() {
			for i := range each {
				if err := do(who*each + i); !assert.NoErrorf(t, err, "client %d, request %d", who, i) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// crowdUntil has clients repeat something until end is called, which waits for the last
// repetitions.
func (c *caddy) crowdUntil(t *testing.T, clients int, do func(n int) error) (end func()) {
	var (
		wg   sync.WaitGroup
		over atomic.Bool
	)
	for who := range clients {
		wg.Go(func() {
			for i := 0; !over.Load(); i++ {
				if err := do(1000*who + i); !assert.NoErrorf(t, err, "client %d, request %d", who, i) {
					return
				}
			}
		})
	}
	return func() {
		over.Store(true)
		wg.Wait()
	}
}

// Errors of answers that broke off: a stream with an error event at its end, and any
// other answer.
var (
	errBrokeOff = errors.New("the stream broke off, with an event that says why")
	errCut      = errors.New("the answer broke off")
)

// check sends a request and compares the answer with the expected one.
func (c *caddy) check(t *testing.T, client *http.Client, body string) error {
	res, err := c.send(t.Context(), client, http.MethodPost, chatPath, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil && strings.Contains(body, `"stream":true`) && bytes.HasSuffix(got, []byte("}}\n\n")) && bytes.Contains(got, []byte("\ndata: {\"error\":{")) {
		return errBrokeOff
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errCut, err)
	}
	if res.StatusCode != http.StatusOK {
		return &badStatus{res.StatusCode, string(got)}
	}
	text, err := fakevllm.Text(withoutComments(got), strings.Contains(body, `"stream":true`))
	if err != nil {
		return err
	}
	if want, err := fakevllm.Answer([]byte(body)); err != nil || text != want {
		return fmt.Errorf("got %q, want %q (%w)", text, want, err)
	}
	return nil
}

// data is base64 of varying size: up to 80 kB for one of four requests, because large
// bodies are received and sent in another way than small ones.
func data(n int) string {
	most := 500
	if n/4%4 == 0 {
		most = 20_000
	}
	return strings.Repeat("QUJD", (n*7919)%most)
}

// badStatus is the error of an answer that is not 200.
type badStatus struct {
	status int
	body   string
}

func (e *badStatus) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

// mixed is a unique request of varying size; half of them are streams.
func mixed(n int) string {
	parts := []string{text(fmt.Sprintf("request %d", n))}
	for i := range n % 4 {
		parts = append(parts, image(fmt.Sprintf("%08d", 10*n+i)+data(n)))
	}
	body := chat(fmt.Sprintf(`,"user":"u%d"`, n), parts...)
	if n%2 == 0 {
		body = stream(body)
	}
	return body
}

// With 64 concurrent clients, no two requests are confused.
func TestManyClients(t *testing.T) {
	t.Parallel()
	for name, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
		for _, handles := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, handles %v", name, handles), func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, n[0], n[1], n[2], func(o *fakevllm.Options) { o.Handles = handles })
				c := startCaddy(t, e.block())
				c.crowd(t, c.client(t, true), 32, 4, mixed)
				c.crowd(t, c.client(t, false), 64, 4, mixed)
				e.assertContract(t)
				c.assertNoLeaks(t)
			})
		}
		t.Run(name+", all options", func(t *testing.T) {
			t.Parallel()
			e, options := everything(t, n[0], n[1], n[2])
			c := startCaddy(t, e.block(options...))
			c.crowd(t, c.client(t, true), 32, 4, medley)
			c.crowd(t, c.client(t, false), 64, 4, medley)
			e.assertContract(t)
			c.assertNoLeaks(t)
		})
	}
}

// No request fails because engines close idle connections as often as requests arrive.
func TestStaleConnections(t *testing.T) {
	t.Parallel()
	const idle = 3 * time.Millisecond
	e := startEngines(t, 2, 1, 2, func(o *fakevllm.Options) { o.IdleTimeout = idle })
	c := startCaddy(t, e.block("retries 0"))
	client := c.client(t, true)
	var wg sync.WaitGroup
	for who := range 8 {
		wg.Go(func() {
			pace := time.NewTicker(idle)
			defer pace.Stop()
			for i := range 200 {
				if err := c.check(t, client, chat("", text(fmt.Sprint(who, i)), image(fmt.Sprintf("%d%04d", who, i)), image("BBBB"))); !assert.NoError(t, err) {
					return
				}
				<-pace.C
			}
		})
	}
	wg.Wait()
	e.assertContract(t)
	assert.Empty(t, c.lines())
	require.NotEmpty(t, e.decode[1].Requests())
}

// Reloads, also with other instances, are invisible to clients.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 4, 2, 4)
	halves := []*engines{
		{encode: e.encode[:2], prefill: e.prefill, decode: e.decode[:2]},
		{encode: e.encode[2:], prefill: e.prefill, decode: e.decode[2:]},
	}
	c := startCaddy(t, halves[0].block())
	client := c.client(t, true)
	over := c.crowdUntil(t, 16, func(n int) error { return c.check(t, client, mixed(n)) })
	for n := range 8 {
		c.reload(t, halves[(n+1)%2].block())
	}
	over()
	for _, engine := range e.all() {
		assert.NotEmpty(t, engine.Requests(), engine.Name())
	}
	e.assertContract(t)
	c.assertNoLeaks(t)
}

// An HTTP/2 connection whose TLS handshake ends after a reload gets no GOAWAY from the server.
// It keeps its client at the old instances for one request only.
func TestReloadAmidHandshake(t *testing.T) {
	t.Parallel()
	before, after := startEngines(t, 1, 0, 1), startEngines(t, 1, 0, 1)
	c := startCaddy(t, before.block())
	early, err := net.Dial("tcp", c.addr)
	require.NoError(t, err)
	c.reload(t, after.block())

	client := c.client(t, true)
	tr := client.Transport.(*http.Transport)
	dial := tr.DialTLSContext
	tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		tr.DialTLSContext = dial
		conn := tls.Client(early, tr.TLSClientConfig)
		return conn, conn.HandshakeContext(ctx)
	}
	for n := range 4 {
		require.NoError(t, c.check(t, client, mixed(n)))
	}
	assert.Equal(t, 1, len(before.decode[0].Requests()))
	assert.Equal(t, 3, len(after.decode[0].Requests()))
}

// If engines die and restart under load, requests do not fail, except for streams
// that have begun. One engine dies at a time, and the next one only when all requests
// of that time have ended: each may need one further attempt, not two.
func TestEnginesDieUnderLoad(t *testing.T) {
	t.Parallel()
	const clients = 32
	for name, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}, "E+PD, all options": {2, 0, 2}, "E+P+D, all options": {2, 2, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var (
				e       *engines
				options []string
				request = mixed
			)
			if strings.Contains(name, "all options") {
				e, options = everything(t, n[0], n[1], n[2])
				request = medley
			} else {
				e = startEngines(t, n[0], n[1], n[2])
			}
			// if an instance counted as down when the other one dies, none would be left
			const patient = "health_fails 1000"
			c := startCaddy(t, e.block(append(options, "encode "+patient, "prefill "+patient, "decode "+patient)...))
			client := c.client(t, true)
			var begun turns
			over := c.crowdUntil(t, clients, func(n int) error {
				begun.take(n / 1000)
				err := c.check(t, client, request(n))
				if errors.Is(err, errBrokeOff) {
					return nil // allowed: the first byte had been sent
				}
				return err
			})
			for _, engine := range append(e.all(), e.all()[0]) {
				begun.pass(t, clients)
				engine.Kill()
				begun.pass(t, clients)
				require.NoError(t, engine.Restart())
			}
			over()
			e.assertContract(t)
			c.assertNoLeaks(t)
		})
	}
}

// turns records which clients have sent a request.
type turns struct {
	mu   sync.Mutex
	seen map[int]bool
}

func (t *turns) take(who int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen != nil {
		t.seen[who] = true
	}
}

// pass waits until this many clients have sent another request.
func (t *turns) pass(tb testing.TB, n int) {
	tb.Helper()
	t.mu.Lock()
	t.seen = make(map[int]bool)
	t.mu.Unlock()
	require.Eventually(tb, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return len(t.seen) == n
	}, time.Minute, tick)
}

// The failure of one instance, of any kind, is invisible to 32 clients, except where that
// is impossible.
func TestFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	const clients, each = 32, 1
	kinds := map[string]fault{
		"500":        {Kind: fakevllm.Status, Code: 500, Message: "no"},
		"503":        {Kind: fakevllm.Status, Code: 503, Message: "no", Spend: true},
		"cut":        {Kind: fakevllm.CutBefore},
		"cut in two": {Kind: fakevllm.CutMiddle},
		"garbage":    {Kind: fakevllm.Garbage},
		"hangs":      {Kind: fakevllm.Hang},
	}
	for topology, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
		for _, role := range []fakevllm.Role{fakevllm.Encode, fakevllm.Prefill, fakevllm.Decode} {
			for kind, f := range kinds {
				// cases in which clients get an error
				var status int
				switch {
				case role == fakevllm.Prefill && n[1] == 0, role == fakevllm.Decode && kind == "garbage": // not detectable
					continue
				case role != fakevllm.Encode && kind == "hangs": // it may only be busy
					status = http.StatusGatewayTimeout
				}
				t.Run(fmt.Sprintf("%s, %s %s", topology, role, kind), func(t *testing.T) {
					t.Parallel()
					e := startEngines(t, n[0], n[1], n[2])
					// its health checks hang too; the requests must come first
					lines := []string{"encode health_fails 1000", "prefill health_fails 1000", "decode health_fails 1000"}
					if kind == "hangs" {
						limit := map[fakevllm.Role]string{fakevllm.Encode: "encode_timeout", fakevllm.Prefill: "prefill_timeout", fakevllm.Decode: "stream_start_timeout"}
						lines = append(lines, limit[role]+" 5s")
					}
					c := startCaddy(t, e.block(lines...))
					list := e.of(role)
					list[0].SetFault(f)
					client := c.client(t, true)
					var failed atomic.Int64
					c.crowdWith(t, clients, each, func(n int) error {
						body := mixed(n)
						if role == fakevllm.Decode && kind == "hangs" {
							body = mixed(2 * n) // streams; other answers have no time limit
						}
						err := c.check(t, client, body)
						unlucky, ok := errors.AsType[*badStatus](err)
						if ok && unlucky.status == status || role == fakevllm.Decode && kind == "cut in two" && endedRightly(body, err) {
							failed.Add(1)
							return nil
						}
						return err
					})
					assert.NotEmpty(t, list[0].Requests())
					assert.Less(t, failed.Load(), int64(clients*each*3/4), "the other one serves")
					e.assertContract(t)
				})
			}
		}
	}
}

// endedRightly reports whether an incomplete answer ended as it should.
func endedRightly(body string, err error) bool {
	if strings.Contains(body, `"stream":true`) {
		return errors.Is(err, errBrokeOff)
	}
	return errors.Is(err, errCut)
}

// When Caddy stops, requests that it has begun are completed within the grace period.
func TestStopUnderLoad(t *testing.T) {
	// not in parallel: on a busy machine, streams exceed the grace period
	e := startEngines(t, 2, 1, 2, func(o *fakevllm.Options) {
		o.ChunkDelay = 5 * time.Millisecond
		if o.Role == fakevllm.Encode {
			o.Delay = 100 * time.Millisecond
		}
	})
	c := startCaddy(t, e.block("encode_limit 8", "decode_limit 64"))
	var begun, over sync.WaitGroup
	for _, http2 := range []bool{true, false} {
		client := c.client(t, http2)
		for n := range 16 {
			begun.Add(1)
			over.Go(func() {
				body := stream(mixed(2*n + 1))
				res, err := c.send(t.Context(), client, http.MethodPost, chatPath, body)
				begun.Done() // the stream has its status
				if !assert.NoError(t, err) {
					return
				}
				got, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				assert.NoError(t, err)
				text, err := fakevllm.Text(got, true)
				assert.NoError(t, err)
				want, _ := fakevllm.Answer([]byte(body))
				assert.Equal(t, want, text)
			})
		}
	}
	begun.Wait()
	c.stop()
	over.Wait()
	e.assertContract(t)
}
