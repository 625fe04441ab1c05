package epdhandler

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/operate"
)

func init() {
	caddy.RegisterModule(new(hostilePolicy))
	caddy.RegisterModule(new(hostileSource))
	caddy.RegisterModule(new(hostileBreaker))
	caddy.RegisterModule(new(hostileHandler))
}

// hostile is how the modules of these tests behave, unless a request asks for something else.
var hostile struct {
	sync.Mutex
	source    string
	addresses []string // of the source
	breaker   string

	hangs    chan struct{} // receives a value when a module hangs
	released chan struct{} // closed to end all hangs
	picks    atomic.Int64
}

// beHostile resets the modules to normal behaviour.
func beHostile(t *testing.T, addresses ...string) {
	hostile.Lock()
	defer hostile.Unlock()
	hostile.source, hostile.breaker, hostile.addresses = "", "", addresses
	hostile.hangs, hostile.released = make(chan struct{}, 100), make(chan struct{})
	hostile.picks.Store(0)
	t.Cleanup(letGo)
}

// letGo ends all hangs.
func letGo() {
	select {
	case <-hostile.released:
	default:
		close(hostile.released)
	}
}

func setSource(behaviour string, addresses ...string) {
	hostile.Lock()
	defer hostile.Unlock()
	hostile.source = behaviour
	if addresses != nil {
		hostile.addresses = addresses
	}
}

func hang() {
	hostile.hangs <- struct{}{}
	<-hostile.released
}

// hostilePolicy behaves as the header X-Do says; by default it takes the first instance.
type hostilePolicy struct{}

func (*hostilePolicy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.selection_policies.hostile", New: func() caddy.Module { return new(hostilePolicy) }}
}

func (*hostilePolicy) Select(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	hostile.picks.Add(1)
	do := r.Header.Get("X-Do")
	switch do {
	case "panic":
		panic("somebody else's at 127.0.0.1:9")
	case "hang":
		hang()
	case "nil":
		return nil
	case "stranger":
		return &reverseproxy.Upstream{Dial: "127.0.0.1:9", Host: new(reverseproxy.Host)}
	case "hostless":
		return &reverseproxy.Upstream{Dial: pool[0].Dial}
	case "from the configuration":
		for _, u := range testProcess.Sites()[0].Decode.Upstreams() {
			if !u.Available() || u.String() != pool[0].String() {
				return u
			}
		}
	case "spoiled list":
		pool[0] = &reverseproxy.Upstream{Dial: "127.0.0.1:9", Host: new(reverseproxy.Host)}
	case "answer":
		http.Error(w, "mine", http.StatusTeapot)
	}
	if name, ok := strings.CutPrefix(do, "only "); ok {
		for _, u := range pool {
			if u.String() == name {
				return u
			}
		}
		return nil
	}
	http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
	return pool[0]
}

// hostileSource returns the addresses that the test has set.
type hostileSource struct{}

func (*hostileSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.hostile", New: func() caddy.Module { return new(hostileSource) }}
}

func (*hostileSource) GetUpstreams(*http.Request) ([]*reverseproxy.Upstream, error) {
	hostile.Lock()
	do, addresses := hostile.source, hostile.addresses
	hostile.Unlock()
	var upstreams []*reverseproxy.Upstream
	for _, a := range addresses {
		upstreams = append(upstreams, &reverseproxy.Upstream{Dial: a})
	}
	switch do {
	case "panic":
		panic("somebody else's")
	case "hang":
		hang()
	case "error":
		return nil, errors.New("asking consul.internal:8500")
	case "nil":
		return append([]*reverseproxy.Upstream{nil}, upstreams...), nil
	case "empty":
		return append([]*reverseproxy.Upstream{{}}, upstreams...), nil
	case "twice":
		return append(upstreams, upstreams...), nil
	case "nobody":
		return nil, nil
	case "always dead":
		n := hostile.picks.Add(1)
		return []*reverseproxy.Upstream{{Dial: fmt.Sprintf("127.0.0.2:%d", 10_000+n)}, {Dial: fmt.Sprintf("127.0.0.3:%d", 10_000+n)}}, nil
	}
	return upstreams, nil
}

// hostileBreaker is closed unless the test has set another behaviour.
type hostileBreaker struct{}

func (*hostileBreaker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.circuit_breakers.hostile", New: func() caddy.Module { return new(hostileBreaker) }}
}

func (*hostileBreaker) OK() bool {
	hostile.Lock()
	do := hostile.breaker
	hostile.Unlock()
	switch do {
	case "panic":
		panic("somebody else's")
	case "hang":
		hang()
	}
	return do != "open"
}

func (*hostileBreaker) RecordMetric(int, time.Duration) {}

// holder is an engine that holds requests with "held" in them until they are released, and
// counts its concurrent requests.
type holder struct {
	address string
	arrived chan struct{}
	release chan struct{}
	now     atomic.Int64
	peak    atomic.Int64
}

func newHolder(t *testing.T) *holder {
	h := &holder{arrived: make(chan struct{}, 100), release: make(chan struct{})}
	h.address = fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			return
		}
		h.peak.Store(max(h.peak.Load(), h.now.Add(1)))
		defer h.now.Add(-1)
		text, _ := io.ReadAll(r.Body)
		if strings.Contains(string(text), "held") {
			h.arrived <- struct{}{}
			select {
			case <-h.release:
			case <-r.Context().Done():
			}
		}
		_, _ = io.WriteString(w, "{}")
	})
	return h
}

// hostileDecode runs Caddy with this decode pool and these options.
func hostileDecode(t *testing.T, options, decode string) (port int) {
	port = freePort(t)
	serve(t, port, options+`,"decode":`+decode, pools{"encode": {"127.0.0.1:9"}})
	return port
}

const hostileBalancing = `"load_balancing":{"selection_policy":{"policy":"hostile"}}`

// result is the answer to a request.
type result struct {
	status int
	header http.Header
	body   string
}

func inBackground(t *testing.T, port int, mark string, headers ...string) <-chan result {
	results := make(chan result, 1)
	go func() {
		status, body, header := post(t, port, chatPath, mark, headers...)
		results <- result{status, header, body}
	}()
	return results
}

// waitFor waits until n requests are in the queue for decode.
func waitFor(t *testing.T, n int) {
	t.Helper()
	eventually(t, "they do not wait", func() bool { return testProcess.Instances.Waiting()["decode"] == n })
}

// idle reports whether no call is in flight or waiting.
func idle() bool {
	inFlight := 0
	testProcess.Instances.Range(func(i *dispatch.Instance) { inFlight += i.InFlight() })
	for _, n := range testProcess.Instances.Waiting() {
		inFlight += n
	}
	return inFlight == 0
}

func assertNobodyHeld(t *testing.T) {
	t.Helper()
	eventually(t, "a slot is left", func() bool {
		return idle()
	})
}

// assertAlive asserts that metrics and status do not hang.
func assertAlive(t *testing.T) {
	t.Helper()
	alive := make(chan struct{})
	go func() {
		defer close(alive)
		r := prometheus.NewRegistry()
		r.MustRegister(operate.Gauges{Process: testProcess})
		_, err := r.Gather()
		assert.NoError(t, err)
		assert.NotEmpty(t, operate.StatusOf(t.Context(), testProcess).Handlers)
	}()
	select {
	case <-alive:
	case <-time.After(10 * time.Second):
		require.FailNow(t, "metrics and status hang")
	}
}

// A policy that panics, or makes an invalid choice, fails only the request that it was called for,
// with and without limits, whether or not the request waits.
func TestHostilePolicyFailsItsRequest(t *testing.T) {
	for _, limit := range []string{"", `,"decode_limit":1`} {
		for _, do := range []string{"panic", "stranger", "hostless", "spoiled list", "nil", "from the configuration"} {
			t.Run(do+limit, func(t *testing.T) {
				beHostile(t)
				a, b := newHolder(t), newHolder(t)
				port := hostileDecode(t, `,"retries":0`+limit, `{`+upstreamsOf([]string{a.address, b.address})+`,`+hostileBalancing+`}`)
				status, code := http.StatusBadGateway, "decode_failed"
				if do == "nil" {
					status, code = http.StatusServiceUnavailable, "decode_unavailable"
				}
				logs := observe(running(t))
				got, body, header := post(t, port, chatPath, "x", "X-Do: "+do)
				if do == "from the configuration" {
					got, _, _ = post(t, port, chatPath, "x", "X-Do: "+do) // b, which is free
					assert.Equal(t, http.StatusOK, got)
				} else {
					assert.Equal(t, status, got, body)
					assert.Contains(t, body, code)
					assert.Empty(t, header["Set-Cookie"])
					assert.Equal(t, do == "panic", logs.FilterMessage("panic").Len() == 1)
				}
				for _, line := range logs.All() {
					assert.NotContains(t, fmt.Sprint(line.ContextMap()), "127.0.0.1")
				}
				got, _, _ = post(t, port, chatPath, "x")
				assert.Equal(t, http.StatusOK, got)
				assertAlive(t)
				assertNobodyHeld(t)
				if limit == "" {
					return
				}

				held := []<-chan result{inBackground(t, port, "held"), inBackground(t, port, "held")}
				<-a.arrived
				<-b.arrived
				bad := inBackground(t, port, "x", "X-Do: "+do)
				waitFor(t, 1)
				good := inBackground(t, port, "x")
				waitFor(t, 2)
				close(a.release)
				close(b.release)
				assert.Equal(t, http.StatusOK, (<-good).status)
				if do == "nil" || do == "from the configuration" {
					<-bad
				} else {
					assert.Equal(t, status, (<-bad).status)
				}
				for _, h := range held {
					assert.Equal(t, http.StatusOK, (<-h).status)
				}
				assert.LessOrEqual(t, max(a.peak.Load(), b.peak.Load()), int64(1))
				assertNobodyHeld(t)
			})
		}
	}
}

// running is the handler that serves.
func running(t *testing.T) *Handler {
	app, err := caddy.ActiveContext().AppIfConfigured("http")
	require.NoError(t, err)
	return app.(*caddyhttp.App).Servers["s"].Routes[0].Handlers[0].(*Handler)
}

// observe collects the log of a handler and its pools.
func observe(h *Handler) *observer.ObservedLogs {
	core, logs := observer.New(zapcore.InfoLevel)
	h.logger = zap.New(core)
	for _, p := range h.site.Pools() {
		p.Logger = zap.New(core)
	}
	return logs
}

// A response that a policy writes is not sent to the client; headers that it adds are.
func TestPolicyThatAnswers(t *testing.T) {
	beHostile(t)
	a := newHolder(t)
	port := hostileDecode(t, "", `{`+upstreamsOf([]string{a.address})+`,`+hostileBalancing+`}`)
	status, body, header := post(t, port, chatPath, "x", "X-Do: answer")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "{}", body)
	assert.Equal(t, []string{"a=b"}, header["Set-Cookie"])
}

// A policy that hangs delays only its own request: no other request, waiting or new,
// and nothing else in the process.
func TestHostilePolicyThatHangs(t *testing.T) {
	for _, waiting := range []bool{false, true} {
		beHostile(t)
		a := newHolder(t)
		port := hostileDecode(t, `,"retries":0,"decode_limit":1`, `{`+upstreamsOf([]string{a.address})+`,`+hostileBalancing+`}`)
		var hung, next <-chan result
		if waiting {
			held := inBackground(t, port, "held")
			<-a.arrived
			hung = inBackground(t, port, "x", "X-Do: hang")
			waitFor(t, 1)
			next = inBackground(t, port, "x")
			waitFor(t, 2)
			close(a.release)
			assert.Equal(t, http.StatusOK, (<-held).status)
			<-hostile.hangs
			start := time.Now()
			assert.Equal(t, http.StatusOK, (<-next).status)
			assert.Less(t, time.Since(start), time.Second/2, "the request waited for another request's policy")
		} else {
			hung = inBackground(t, port, "x", "X-Do: hang")
			<-hostile.hangs
		}
		for range 3 {
			status, _, _ := post(t, port, chatPath, "x")
			assert.Equal(t, http.StatusOK, status)
		}
		assertAlive(t)
		select {
		case <-hung:
			assert.Fail(t, "the policy did not hang")
		default:
		}
		letGo()
		assert.Equal(t, http.StatusOK, (<-hung).status)
		assertNobodyHeld(t)
	}
}

// The policy is called once for each choice, with the available instances, and its headers are
// sent to the client once.
func TestPolicyIsAskedOnce(t *testing.T) {
	beHostile(t)
	var holders []*holder
	var addresses []string
	for range 8 {
		holders = append(holders, newHolder(t))
		addresses = append(addresses, holders[len(holders)-1].address)
	}
	port := hostileDecode(t, `,"decode_limit":1`, `{`+upstreamsOf(addresses)+`,`+hostileBalancing+`}`)
	var held []<-chan result
	for _, h := range holders[:7] {
		held = append(held, inBackground(t, port, "held"))
		<-h.arrived
	}
	hostile.picks.Store(0)
	status, _, header := post(t, port, chatPath, "x")
	assert.Equal(t, http.StatusOK, status)
	assert.EqualValues(t, 1, hostile.picks.Load())
	assert.Len(t, header["Set-Cookie"], 1)

	// if the policy wants only a busy instance, it is called again when that is free
	only := inBackground(t, port, "x", "X-Do: only "+addresses[0])
	waitFor(t, 1)
	assert.EqualValues(t, 2, hostile.picks.Load())
	status, _, _ = post(t, port, chatPath, "x")
	assert.Equal(t, http.StatusOK, status, "a request that waits for another instance delays no one")
	for i, h := range holders[:7] {
		close(h.release)
		assert.Equal(t, http.StatusOK, (<-held[i]).status)
	}
	assert.Equal(t, http.StatusOK, (<-only).status)
	assertNobodyHeld(t)
}

// Invalid upstreams of a source are ignored, and a failure of the source fails only the
// request that it was called for.
func TestHostileSource(t *testing.T) {
	beHostile(t)
	a := newHolder(t)
	setSource("", a.address)
	port := hostileDecode(t, `,"decode_limit":1`, `{"dynamic_upstreams":{"source":"hostile"}}`)
	for do, want := range map[string]int{"": 200, "nil": 200, "empty": 200, "twice": 200, "panic": 502, "error": 503, "nobody": 503} {
		setSource(do)
		status, body, _ := post(t, port, chatPath, "x")
		assert.Equal(t, want, status, "%s: %s", do, body)
		assertAlive(t)
	}
	setSource("hang")
	hung := inBackground(t, port, "x")
	<-hostile.hangs
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() { operate.StatusOf(t.Context(), testProcess) }) // it calls the source too, and gives up
	}
	asking.Wait()
	assert.LessOrEqual(t, len(hostile.hangs), 4)
	setSource("")
	status, _, _ := post(t, port, chatPath, "x")
	assert.Equal(t, http.StatusOK, status)
	letGo()
	assert.Equal(t, http.StatusOK, (<-hung).status)
	assertAlive(t)
	assertNobodyHeld(t)
}

// A source that returns other, dead instances each time does not keep a request forever.
func TestSourceOfDeadInstances(t *testing.T) {
	beHostile(t)
	setSource("always dead")
	port := hostileDecode(t, `,"retries":1`, `{"dynamic_upstreams":{"source":"hostile"}}`)
	status, body, _ := post(t, port, chatPath, "x")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, body, "decode_unavailable")
	assert.LessOrEqual(t, hostile.picks.Load(), int64(4), "look-ups: two instances, a further attempt, and one besides")
}

// The connections of an attempt that panics are closed.
func TestPanicClosesTheConnection(t *testing.T) {
	left := make(chan struct{})
	decode := fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "begins")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(left)
	})
	port := hostileDecode(t, `,"retries":0`, `{`+upstreamsOf([]string{decode})+`,"handle_response":[{"routes":[{"handle":[{"handler":"hostile"}]}]}]}`)
	status, _, _ := post(t, port, chatPath, "x")
	assert.Equal(t, http.StatusBadGateway, status)
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		assert.Fail(t, "the engine's connection was not closed")
	}
	assertNobodyHeld(t)
}

// hostileHandler panics.
type hostileHandler struct{}

func (hostileHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.hostile", New: func() caddy.Module { return new(hostileHandler) }}
}

func (hostileHandler) ServeHTTP(http.ResponseWriter, *http.Request, caddyhttp.Handler) error {
	panic("somebody else's")
}

// Waiting requests use instances that are new, and none that were removed.
func TestNewInstancesServeWhoWaits(t *testing.T) {
	beHostile(t)
	a, b := newHolder(t), newHolder(t)
	setSource("", a.address)
	port := hostileDecode(t, `,"decode_limit":1,"queue_timeout":"30s"`, `{"dynamic_upstreams":{"source":"hostile"}}`)
	held := inBackground(t, port, "held")
	<-a.arrived
	first := inBackground(t, port, "x")
	waitFor(t, 1)
	setSource("", a.address, b.address)
	start := time.Now()
	status, _, _ := post(t, port, chatPath, "x")
	assert.Equal(t, http.StatusOK, status, "a new request")
	assert.Equal(t, http.StatusOK, (<-first).status, "a request that was waiting")
	assert.Less(t, time.Since(start), 10*time.Second)

	// a is removed
	second := inBackground(t, port, "held")
	<-b.arrived
	third := inBackground(t, port, "x")
	waitFor(t, 1)
	c := newHolder(t)
	setSource("", c.address)
	assert.Equal(t, http.StatusOK, (<-third).status)
	assert.EqualValues(t, 1, c.peak.Load())
	close(a.release)
	close(b.release)
	assert.Equal(t, http.StatusOK, (<-held).status)
	assert.Equal(t, http.StatusOK, (<-second).status)
	assertNobodyHeld(t)
}

// While a waiting request calls a source that hangs or panics, the others are served.
func TestSourceThatHangsWhileSomebodyWaits(t *testing.T) {
	for _, do := range []string{"hang", "panic"} {
		beHostile(t)
		a := newHolder(t)
		setSource("", a.address)
		port := hostileDecode(t, `,"retries":0,"decode_limit":1`, `{"dynamic_upstreams":{"source":"hostile"}}`)
		held := inBackground(t, port, "held")
		<-a.arrived
		waiting := make(chan result, 3)
		for range 3 {
			go func() { waiting <- <-inBackground(t, port, "x") }()
		}
		waitFor(t, 3)
		setSource(do)
		if do == "hang" {
			<-hostile.hangs
		} else {
			assert.Equal(t, http.StatusBadGateway, (<-waiting).status)
		}
		setSource("")
		close(a.release)
		assert.Equal(t, http.StatusOK, (<-held).status)
		for range 2 {
			assert.Equal(t, http.StatusOK, (<-waiting).status)
		}
		if do == "hang" {
			letGo()
			assert.Equal(t, http.StatusOK, (<-waiting).status)
		}
		assertNobodyHeld(t)
	}
}

// A circuit breaker is a module that can fail, too.
func TestHostileBreaker(t *testing.T) {
	beHostile(t)
	a := newHolder(t)
	breaker := func(do string) {
		hostile.Lock()
		defer hostile.Unlock()
		hostile.breaker = do
	}
	port := hostileDecode(t, `,"retries":0,"decode_limit":1`, `{`+upstreamsOf([]string{a.address})+`,"circuit_breaker":{"type":"hostile"}}`)
	for do, want := range map[string]int{"": 200, "open": 503, "panic": 502} {
		breaker(do)
		status, _, _ := post(t, port, chatPath, "x")
		assert.Equal(t, want, status, do)
		assertAlive(t)
		assert.Equal(t, do == "open", testProcess.Sites()[0].Decode.Health() == engine.Unhealthy, do)
		breaker("")
		status, _, _ = post(t, port, chatPath, "x")
		assert.Equal(t, 200, status)
	}
	breaker("hang")
	hung := inBackground(t, port, "x")
	<-hostile.hangs
	breaker("")
	assertAlive(t)
	status, _, _ := post(t, port, chatPath, "x")
	assert.Equal(t, 200, status)
	letGo()
	assert.Equal(t, 200, (<-hung).status)
	assertNobodyHeld(t)
}

// Caddy's header and query policies call their fallback without a ResponseWriter.
func TestFallbackOfStockPolicies(t *testing.T) {
	addresses := named(t, 4)
	for _, policy := range []string{
		`{"policy":"header","field":"X-Session","fallback":{"policy":"cookie"}}`,
		`{"policy":"query","key":"user","fallback":{"policy":"cookie"}}`,
		`{"policy":"query","key":"user","fallback":{"policy":"header","field":"X-Session","fallback":{"policy":"cookie","fallback":{"policy":"first"}}}}`,
	} {
		for _, limit := range []string{"", `,"decode_limit":4`} {
			port := hostileDecode(t, limit, fmt.Sprintf(`{%s,"load_balancing":{"selection_policy":%s}}`, upstreamsOf(addresses), policy))
			status, first, header := post(t, port, chatPath, "x")
			require.Equal(t, http.StatusOK, status, policy)
			require.Len(t, header["Set-Cookie"], 1)
			name, _, _ := strings.Cut(header.Get("Set-Cookie"), ";")
			for range 8 {
				_, again, header := post(t, port, chatPath, "x", "Cookie: "+name)
				assert.Equal(t, first, again)
				assert.Empty(t, header["Set-Cookie"])
			}
			status, _, header = post(t, port, chatPath+"?user=1", "x", "X-Session: 1")
			assert.Equal(t, http.StatusOK, status, policy)
			assert.Empty(t, header["Set-Cookie"])
			assertAlive(t)
		}
	}
}
