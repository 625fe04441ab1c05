package epdhandler

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An engine never gets bytes of another request or of freed memory, whatever engines and
// clients do while bodies are being sent.
func TestNoBytesOfOthers(t *testing.T) {
	nothingHeld(t)
	poisonIdle(t)
	var wholes atomic.Int64
	answer := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // a health check
			return
		}
		who := &reader{t: t, body: r.Body, mark: strings.SplitN(r.Header.Get("X-Request-Id"), ":", 2)[0][:8]}
		switch rand.IntN(8) {
		case 0: // does not read the body, though more of it is being sent
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		case 1: // answers before it has read the body
			_, _ = io.WriteString(w, `{}`)
			_ = http.NewResponseController(w).Flush()
			who.read(0, time.Millisecond)
			return
		case 2:
			who.read(rand.IntN(1<<20), 0)
			panic(http.ErrAbortHandler)
		case 3:
			who.read(0, time.Millisecond)
		default:
			who.read(0, 0)
		}
		if who.whole {
			wholes.Add(1)
		}
		_, _ = io.WriteString(w, `{}`)
	}
	engines := pools{}
	for _, stage := range []string{"encode", "prefill", "decode"} {
		engines[stage] = []string{slowEngine(t, answer), slowEngine(t, answer)}
	}
	port := freePort(t)
	serve(t, port, "", engines)

	var clients sync.WaitGroup
	for who := range 8 {
		clients.Go(func() {
			client := newClient(t, who%2 == 0)
			for i := range 8 {
				ctx, leave := context.WithCancel(t.Context())
				if rand.IntN(4) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(int(20*time.Millisecond))), leave)
				}
				mark := fmt.Sprintf("T%07d", 100*who+i)
				image := fmt.Sprintf(`{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}`, strings.Repeat(mark, 10_000<<rand.IntN(6)))
				body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":[%s,%s]}]}`, image, image)
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", port, chatPath), strings.NewReader(body))
				require.NoError(t, err)
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("X-Request-Id", mark)
				if res, err := client.Do(r); err == nil {
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
				leave()
			}
		})
	}
	clients.Wait()
	assert.NotZero(t, wholes.Load(), "no engine got a whole body")
	nothingHeld(t)
}

// slowEngine starts an engine with a small receive buffer: most of a body stays in the proxy
// until the engine reads it.
func slowEngine(t *testing.T, answer http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(answer)
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		assert.NoError(t, c.(*net.TCPConn).SetReadBuffer(16<<10))
		return ctx
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

const poison = 0xEE

// poisonIdle overwrites memory when it becomes idle, instead of making it inaccessible.
func poisonIdle(t *testing.T) {
	before := testProcess.Memory.Guard
	testProcess.Memory.Guard = func(region []byte, idle bool) {
		if idle {
			fill(region, poison)
		} else {
			protect(region, false) // it may be idle since an earlier test
		}
	}
	t.Cleanup(func() { testProcess.Memory.Guard = before })
}

// fill fills b by copying, which is much faster than a loop under the race detector.
func fill(b []byte, c byte) {
	if len(b) == 0 {
		return
	}
	b[0] = c
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// reader is an engine that reads a body in which the client's mark follows every T.
type reader struct {
	t     *testing.T
	body  io.Reader
	mark  string
	whole bool
	rest  []byte // an incomplete mark
}

// read reads max bytes (0: all), slowly, and checks them.
func (r *reader) read(max int, pause time.Duration) {
	buf := make([]byte, 64<<10)
	for n := 0; max == 0 || n < max; {
		m, err := r.body.Read(buf)
		n += m
		r.check(buf[:m])
		if err != nil {
			r.whole = err == io.EOF
			return
		}
		time.Sleep(pause)
	}
}

func (r *reader) check(p []byte) {
	p = append(r.rest, p...)
	if bytes.IndexByte(p, poison) >= 0 {
		r.t.Error("memory that is free")
		return
	}
	for {
		i := bytes.IndexByte(p, 'T')
		if i < 0 {
			r.rest = nil
			return
		}
		if p = p[i:]; len(p) < len(r.mark) {
			r.rest = bytes.Clone(p)
			return
		}
		if got := string(p[:len(r.mark)]); got != r.mark {
			r.t.Errorf("%s in the body of %s", got, r.mark)
			return
		}
		p = p[len(r.mark):]
	}
}
