package epdhandler

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// However requests end, nothing that this package counts is left of them and, after Caddy
// has stopped, no goroutine.
func TestNothingIsLeft(t *testing.T) {
	nothingHeld(t)
	// goroutines of other tests, and of packages that Caddy uses
	before := goleak.IgnoreCurrent()
	s := newSite(t)
	for name, config := range map[string]struct{ options, limit string }{
		"no comments":    {`"stream_keepalive":0`, ""},
		"comments":       {`"stream_keepalive":"5ms"`, ""},
		"limited engine": {`"encode_timeout":"400ms","prefill_timeout":"400ms","stream_start_timeout":"400ms","stream_keepalive":"50ms"`, "engine"},
		"limited queue":  {`"queue_timeout":"100ms","kv_lease":"300ms","stream_keepalive":"10ms"`, "queue"},
	} {
		s.load(t, config.options)
		for _, http2 := range []bool{false, true} {
			client := newClient(t, http2)
			for what, how := range endings {
				if how.limit != config.limit {
					continue
				}
				for _, role := range how.at {
					for _, streamed := range []bool{false, true} {
						ok := t.Run(fmt.Sprintf("%s, http2 %v, %s %s, stream %v", name, http2, what, role, streamed), func(t *testing.T) {
							s.end(t, client, how, role, streamed)
						})
						if !ok { // a leak here would make the following cases fail too
							return
						}
					}
				}
			}
			client.CloseIdleConnections()
		}
		eventually(t, "queues are looked after in which nobody waits", func() bool {
			return idle()
		})
		nothingHeld(t)
	}
	require.NoError(t, caddy.Stop())
	s.close()
	var left error
	for range 5 { // each call waits a little
		if left = goleak.Find(before); left == nil {
			break
		}
	}
	assert.NoError(t, left)
}

var everywhere = []fakevllm.Role{fakevllm.Encode, fakevllm.Prefill, fakevllm.Decode}

// ending is a way in which requests can end.
type ending struct {
	at    []fakevllm.Role // roles at which it can happen
	fault fakevllm.Fault  // fault of the engines of that role
	held  bool            // other requests occupy the engines
	limit string          // ends the request; it would affect other cases

	leave func(*site, fakevllm.Role) bool // the client leaves when it returns true
	begun bool                            // the client leaves after the begin of the answer
	half  bool                            // the client sends only half of the body
}

var endings = map[string]ending{
	"fine at":             {at: everywhere},
	"bad request at":      {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Status, Code: 400}},
	"failure at":          {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Status, Code: 503}},
	"second attempt at":   {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Status, Code: 503, Times: 1}},
	"cut before":          {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.CutBefore}},
	"cut in two at":       {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.CutMiddle}},
	"garbage of":          {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Garbage}},
	"crash of":            {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Crash}},
	"silence of":          {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Slow, Delay: time.Second}, limit: "engine"},
	"waits too long for":  {at: everywhere, held: true, limit: "queue"},
	"leaves the queue of": {at: everywhere, held: true, leave: (*site).waiting},
	"leaves in":           {at: everywhere, fault: fakevllm.Fault{Kind: fakevllm.Hang}, leave: (*site).asked},
	"leaves when reading": {at: everywhere[2:], begun: true},
	"leaves when sending": {at: everywhere[2:], leave: (*site).sending, half: true},
}

// site is Caddy in this process, and its engines.
type site struct {
	port    int
	engines map[fakevllm.Role][]*fakevllm.Engine
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{port: freePort(t), engines: make(map[fakevllm.Role][]*fakevllm.Engine)}
	t.Cleanup(s.close)
	cluster := fakevllm.NewCluster()
	for _, role := range everywhere {
		for range 2 {
			e, err := cluster.Start(fakevllm.Options{Role: role, ChunkDelay: time.Millisecond, Handles: true})
			require.NoError(t, err)
			s.engines[role] = append(s.engines[role], e)
		}
	}
	return s
}

func (s *site) close() {
	for _, engines := range s.engines {
		for _, e := range engines {
			e.Close()
		}
	}
}

// load runs Caddy with these options of the handler, in place of the previous configuration.
func (s *site) load(t *testing.T, options string) {
	t.Helper()
	addresses := pools{}
	for role, engines := range s.engines {
		options += fmt.Sprintf(`,"%s_limit":1`, role)
		addresses[string(role)] = []string{engines[0].Addr(), engines[1].Addr()}
	}
	serve(t, s.port, ","+options, addresses)

	// the server of the previous configuration may accept one more connection
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/health", s.port)); err == nil {
		_ = res.Body.Close()
	}
}

func newClient(t *testing.T, http2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// end sends a request that ends in this way, and asserts that nothing is counted for it afterwards.
func (s *site) end(t *testing.T, client *http.Client, how ending, role fakevllm.Role, streamed bool) {
	engines := s.engines[role]
	for _, e := range engines {
		e.Reset()
		e.SetFault(how.fault)
		if how.held {
			e.SetFault(fakevllm.Fault{Kind: fakevllm.Hang, Match: "HELD"})
		}
	}
	var clients sync.WaitGroup
	defer clients.Wait()
	here, leave := context.WithCancel(t.Context())
	defer leave()
	if how.held {
		for range engines {
			clients.Go(func() { s.send(here, client, "HELD", streamed, ending{}, nil) })
		}
		eventually(t, "nobody is held", func() bool { return busyWith(engines) == len(engines) })
	}

	mine, leaveAlone := context.WithCancel(here)
	begun, over := make(chan struct{}), make(chan struct{})
	clients.Go(func() {
		defer close(over)
		s.send(mine, client, "MINE", streamed, how, begun)
	})
	if how.leave != nil {
		eventually(t, "the request does not get there", func() bool { return how.leave(s, role) })
		leaveAlone()
	}
	if how.begun {
		<-begun
		leaveAlone()
	}
	<-over
	if !how.half && !how.begun {
		assert.True(t, s.asked(role), "the request did not get there")
	}
	leaveAlone()
	leave()
	for _, e := range engines {
		e.SetFault(fakevllm.Fault{})
		if how.fault.Kind == fakevllm.Crash {
			require.NoError(t, e.Restart())
		}
	}
	eventually(t, "something is still in flight", func() bool {
		return idle() && busyWith(engines) == 0
	})
}

// send sends a request and reads any answer.
func (s *site) send(ctx context.Context, client *http.Client, mark string, streamed bool, how ending, begun chan<- struct{}) {
	text := mark
	switch {
	case how.begun:
		text += strings.Repeat(" and so on", 500) // the stream takes longer than the client to leave
	case how.half:
		text += strings.Repeat(" and so on", 100_000) // large enough to reserve memory
	}
	body := fmt.Sprintf(`{"model":"fake","stream":%v,"messages":[{"role":"user","content":[{"type":"text","text":"%s"},%s]}]}`,
		streamed, text, `{"type":"image_url","image_url":{"url":"data:image/png;base64,`+mark+`"}}`)
	var upload io.Reader = strings.NewReader(body)
	if how.half {
		upload = io.MultiReader(strings.NewReader(body[:len(body)/2]), never{ctx})
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", s.port, chatPath), upload)
	if err != nil {
		panic(err)
	}
	r.ContentLength = int64(len(body))
	r.Header.Set("Content-Type", "application/json")
	res, err := client.Do(r)
	if err != nil {
		return
	}
	defer res.Body.Close()
	_, _ = res.Body.Read(make([]byte, 1))
	if begun != nil {
		close(begun)
	}
	_, _ = io.Copy(io.Discard, res.Body)
}

// never is the rest of a body that is never sent.
type never struct{ context.Context }

// Read implements io.Reader.
func (n never) Read([]byte) (int, error) {
	<-n.Done()
	return 0, n.Err()
}

func busyWith(engines []*fakevllm.Engine) (n int) {
	for _, e := range engines {
		n += e.InFlight()
	}
	return n
}

// asked reports whether an engine of a role has received a request.
func (s *site) asked(role fakevllm.Role) bool {
	return slices.ContainsFunc(s.engines[role], func(e *fakevllm.Engine) bool { return len(e.Requests()) > 0 })
}

// waiting reports whether a request is in the queue for a role.
func (*site) waiting(role fakevllm.Role) bool {
	return testProcess.Instances.Waiting()[string(role)] > 0
}

// sending reports whether a client has begun to send a body.
func (*site) sending(fakevllm.Role) bool {
	return testProcess.Memory.Held() > 0
}

func eventually(t *testing.T, message string, what func() bool) {
	t.Helper()
	require.Eventually(t, what, 10*time.Second, time.Millisecond, message)
}
