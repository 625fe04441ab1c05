package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
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

// crowd has clients send so many requests each and checks every answer.
func (c *caddy) crowd(t *testing.T, client *http.Client, clients, each int, request func(n int) string) {
	t.Helper()
	var wg sync.WaitGroup
	for who := range clients {
		wg.Go(func() {
			for i := range each {
				body := request(who*each + i)
				if err := c.check(t, client, body); !assert.NoErrorf(t, err, "client %d, request %d", who, i) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// check sends a request and holds the answer against the right one.
func (c *caddy) check(t *testing.T, client *http.Client, body string) error {
	res, err := c.send(t.Context(), client, http.MethodPost, chatPath, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", res.StatusCode, got)
	}
	text, err := fakevllm.Text(got, strings.Contains(body, `"stream":true`))
	if err != nil {
		return err
	}
	if want, err := fakevllm.Answer([]byte(body)); err != nil || text != want {
		return fmt.Errorf("got %q, want %q (%w)", text, want, err)
	}
	return nil
}

// mixed is a request like no other, of changing size, also a stream.
func mixed(n int) string {
	parts := []string{text(fmt.Sprintf("request %d", n))}
	for i := range n % 4 {
		parts = append(parts, image(fmt.Sprintf("%08d", 10*n+i)+strings.Repeat("QUJD", (n*7919)%20_000)))
	}
	body := chat(fmt.Sprintf(`,"user":"u%d"`, n), parts...)
	if n%2 == 0 {
		body = stream(body)
	}
	return body
}

// Nothing gets mixed up between 64 clients at a time.
func TestManyClients(t *testing.T) {
	for name, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
		for _, handles := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, handles %v", name, handles), func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, n[0], n[1], n[2], func(o *fakevllm.Options) { o.Handles = handles })
				c := startCaddy(t, e.block())
				c.crowd(t, c.client(t, true), 32, 8, mixed)
				c.crowd(t, c.client(t, false), 64, 8, mixed)
				e.assertContract(t)
			})
		}
	}
}

// Engines that close idle connections at the pace of the requests make nobody fail.
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
			for i := range 400 {
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

// A new configuration, also with other instances, is nothing that clients see.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 4, 2, 4)
	halves := []*engines{
		{encode: e.encode[:2], prefill: e.prefill, decode: e.decode[:2]},
		{encode: e.encode[2:], prefill: e.prefill, decode: e.decode[2:]},
	}
	c := startCaddy(t, halves[0].block())
	over := make(chan struct{})
	go func() {
		defer close(over)
		c.crowd(t, c.client(t, true), 16, 40, mixed)
	}()
	for n := 1; ; n++ {
		select {
		case <-over:
			assert.Greater(t, n, 3)
			for _, engine := range e.all() {
				assert.NotEmpty(t, engine.Requests(), engine.Name())
			}
			e.assertContract(t)
			return
		default:
			c.reload(t, halves[n%2].block())
		}
	}
}

// Engines that die and come back under load make nobody fail, except in streams
// that have begun. One dies at a time, and the next one only when no request is
// left that has met the last death: each may have one attempt too many, not two.
func TestEnginesDieUnderLoad(t *testing.T) {
	const clients, each = 16, 60
	for name, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, n[0], n[1], n[2])
			// an instance that counts as down when the other one dies would be missed
			const patient = "health_fails 1000"
			c := startCaddy(t, e.block("encode "+patient, "prefill "+patient, "decode "+patient))
			sent, over := make(chan int), make(chan struct{})
			go func() {
				defer close(over)
				c.crowd(t, c.client(t, true), clients, each, func(n int) string {
					sent <- n / each
					return strings.Replace(mixed(n), `"stream":true`, `"stream":false`, 1)
				})
			}()
			// pass waits until every client has begun another request
			pass := func() bool {
				for begun := make(map[int]bool); len(begun) < clients; {
					select {
					case who := <-sent:
						begun[who] = true
					case <-over:
						return false
					}
				}
				return true
			}
			deaths := 0
			for pass() {
				engine := e.all()[deaths%len(e.all())]
				engine.Kill()
				deaths++
				more := pass()
				require.NoError(t, engine.Restart())
				if !more {
					break
				}
			}
			<-over
			assert.Greater(t, deaths, len(e.all()))
			e.assertContract(t)
		})
	}
}

// When Caddy stops, requests and streams that have begun end as they should.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
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
