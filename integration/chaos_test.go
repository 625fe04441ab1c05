package integration

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

var (
	chaos = flag.Duration("chaos", 4*time.Second, "how long each case of TestChaos lets engines fail")
	seed  = flag.Uint64("seed", 0, "what TestChaos draws its faults and requests from; 0: something new")
)

// patience is the limit for one request, far above the sum of all time limits.
const patience = 40 * time.Second

// Whatever engines, clients and the configuration do at the same time: every answer is
// right, or recognizable as an error, and afterwards no resources are in use.
func TestChaos(t *testing.T) {
	t.Parallel()
	from := *seed
	if from == 0 {
		from = rand.Uint64()
	}
	t.Logf("repeat with: go test ./integration -run TestChaos -args -chaos %v -seed %d", *chaos, from)
	for name, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &storm{seed: from + uint64(n[1]), seen: make(map[outcome]int)}
			draw := s.source(0)
			handles := draw.IntN(2) == 0
			s.modern = draw.IntN(2) == 0
			s.consumer = consuming(n[1])
			pushTo := consumers(s.consumer, 2)
			s.engines = startEngines(t, n[0], n[1], n[2], func(o *fakevllm.Options) {
				o.Handles, o.Forget, o.Modern, o.VaryShapes = handles, true, s.modern, s.modern
				if s.modern {
					pushTo(o)
				}
				o.Delay, o.ChunkDelay = 3*time.Millisecond, time.Millisecond
			})
			s.caddy = startCaddy(t, s.block(draw))

			var wg sync.WaitGroup
			over, end := context.WithTimeout(t.Context(), *chaos)
			defer end()
			for i, engine := range s.engines.all() {
				wg.Go(func() { s.haunt(t, over, s.source(1+i), engine) })
			}
			for i := range 64 {
				wg.Go(func() { s.visit(t, over, s.source(100+i), i) })
			}
			for pass(over, *chaos/2); pass(over, between(draw, 200*time.Millisecond, time.Second)); {
				s.reloads.Add(1)
				s.caddy.reload(t, s.block(draw))
			}
			wg.Wait()
			t.Logf("%v, handles %v, modern %v, %d reloads, slowest %v", s.seen, handles, s.modern, s.reloads.Load(), s.slowest)
			total := 0
			for _, n := range s.seen {
				total += n
			}
			assert.Greater(t, s.seen[answered], total/5, "too few requests succeeded")
			assert.NotZero(t, s.misfortunes.Load(), "no faults were injected") // clients may have noticed none of them
			assert.NotZero(t, s.seen[left], "nobody left")
			assert.LessOrEqual(t, s.seen[unheard], 32*int(s.reloads.Load()), "more than one for each reload and client of HTTP/1.1")

			s.calm(t)
		})
	}
}

// storm is a case of TestChaos.
type storm struct {
	*engines
	*caddy
	seed     uint64
	modern   bool          // engines of vLLM 0.31.0
	consumer fakevllm.Role // the stage that consumes embeddings
	reloads  atomic.Int64

	misfortunes atomic.Int64 // faults of engines so far

	mu      sync.Mutex
	seen    map[outcome]int
	slowest time.Duration
}

// source returns the random numbers of one actor; they depend only on the seed.
func (s *storm) source(who int) *rand.Rand { return rand.New(rand.NewPCG(s.seed, uint64(who))) }

func between(draw *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(draw.Int64N(int64(high-low)))
}

// pass waits, and reports whether the storm goes on.
func pass(over context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-over.Done():
		return false
	}
}

// block is a configuration with short time limits and some random options.
func (s *storm) block(draw *rand.Rand) string {
	const checks = " health_interval 200ms\n health_timeout 500ms\n health_fails 2"
	lines := []string{
		"encode" + checks, "prefill" + checks, "decode" + checks,
		"decode transport http {\nresponse_header_timeout 2s\n}", // streams have a limit of their own
		"encode_timeout 1s", "prefill_timeout 2s", "stream_start_timeout 2s", "stream_idle_timeout 4s", "queue_timeout 2s",
		fmt.Sprintf("encode_limit %d", 4+draw.IntN(12)),
		fmt.Sprintf("decode_limit %d", 8+draw.IntN(16)),
		fmt.Sprintf("queue_size %d", 32+draw.IntN(64)),
		fmt.Sprintf("retries %d", draw.IntN(3)),
	}
	if draw.IntN(2) == 0 {
		lines = append(lines, "stream_keepalive 20ms")
	}
	if s.modern && draw.IntN(4) > 0 {
		lines = append(lines, "references")
	}
	if s.modern && draw.IntN(2) == 0 {
		lines = append(lines, "encode_batch 2")
	}
	if s.modern && draw.IntN(3) == 0 {
		lines = append(lines, s.engines.pushing(s.consumer, 2))
	}
	return s.engines.block(lines...)
}

// kill is fakevllm's Kill as a fault.
const kill fakevllm.FaultKind = "kill"

// misfortunes are the faults of engines, and their maximum durations.
var misfortunes = []struct {
	fault
	atMost time.Duration
}{
	{fault{Kind: fakevllm.Hang}, 3 * time.Second},
	{fault{Kind: fakevllm.Hang}, 300 * time.Millisecond},
	{fault{Kind: fakevllm.Hang, Times: 3}, 3 * time.Second}, // /health answers again
	{fault{Kind: kill}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.Crash}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.CutBefore}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.CutBefore, Spend: true}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.CutMiddle}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.CutMiddle, Times: 20}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.Status, Code: 500, Message: "broken"}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.Status, Code: 503, Message: "busy", Spend: true}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.Slow, Delay: 200 * time.Millisecond}, 400 * time.Millisecond},
	{fault{Kind: fakevllm.Garbage}, 400 * time.Millisecond},
}

// haunt injects one fault after the other into an engine, and clears the last one.
func (s *storm) haunt(t *testing.T, over context.Context, draw *rand.Rand, e *fakevllm.Engine) {
	for pass(over, between(draw, 300*time.Millisecond, 2*time.Second)) {
		f := misfortunes[draw.IntN(len(misfortunes))]
		if f.Kind == fakevllm.Garbage && strings.HasPrefix(e.Name(), string(fakevllm.Decode)) {
			continue // decode's answers are not checked by the proxy
		}
		s.misfortunes.Add(1)
		if f.Kind == kill {
			e.Kill()
		} else {
			e.SetFault(f.fault)
		}
		pass(over, between(draw, 20*time.Millisecond, f.atMost))
		e.SetFault(fault{})
		if f.Kind == kill || f.Kind == fakevllm.Crash {
			if !assert.NoError(t, e.Restart()) {
				return
			}
		}
	}
}

// visit sends one request after the other.
func (s *storm) visit(t *testing.T, over context.Context, draw *rand.Rand, who int) {
	http2 := who%2 == 0
	client := s.client(t, http2)
	client.Timeout = patience
	for i := 0; over.Err() == nil; i++ {
		v := &visit{storm: s, draw: draw, http2: http2, number: who*1_000_000 + i}
		begin := time.Now()
		o, err := v.pay(t.Context(), client)
		s.mu.Lock()
		s.seen[o]++
		s.slowest = max(s.slowest, time.Since(begin))
		s.mu.Unlock()
		if !assert.NoErrorf(t, err, "client %d, request %d", who, i) {
			return
		}
		// without the pause, a busy machine would exceed every time limit
		pass(over, between(draw, 0, time.Second))
	}
}

// calm asserts that no request fails after the last fault. Slots that are still taken
// stay so with a new configuration, which has longer time limits.
func (s *storm) calm(t *testing.T) {
	s.caddy.reload(t, s.engines.block("encode_limit 4", "prefill_limit 4", "decode_limit 4"))
	require.Eventually(t, func() bool {
		health := s.do(t, http.MethodGet, "/health", "")
		return health.StatusCode == http.StatusOK && !strings.Contains(string(health.body), "degraded")
	}, waitLong, tick)
	for _, http2 := range []bool{true, false} {
		s.crowd(t, s.client(t, http2), 16, 4, mixed)
	}
	require.Eventually(t, func() bool { return busy(s.engines.all()...) == 0 }, waitLong, tick)
	for _, e := range s.engines.all() {
		for _, r := range e.Refusals() {
			assert.Regexp(t, tolerable, r.Message, e.Name())
		}
	}
	panics, _ := s.log.find(func(e entry) bool { return strings.Contains(e.str("msg"), "panic") })
	assert.Empty(t, panics)
	s.assertNoLeaks(t)
}

// tolerable are contract violations that the proxy cannot avoid. A connection that ends at once
// counts as one that was idle, and what was sent on it as unspent. And an id is free
// again when its client has left, which the engine may not have noticed yet.
var tolerable = regexp.MustCompile("^(unknown or already freed kv blocks|unknown or spent transfer handle|duplicate request id in flight: " + sameID + ")")

// outcome is how a request ended for its client.
type outcome string

const (
	answered outcome = "answered"  // with the right and complete answer
	refused  outcome = "refused"   // with a status and an error
	brokeOff outcome = "broke off" // in the middle of the answer
	left     outcome = "left"      // the client left

	// unheard is the end of an HTTP/1.1 connection that a reload closes after it was accepted
	// and before its next request was read: net/http does so. HTTP/2 has no such case.
	unheard outcome = "unheard"

	wrong outcome = "wrong" // never allowed
)

// sameID is an x-request-id that many requests have.
const sameID = "same-for-all"

// visit is one request.
type visit struct {
	*storm
	draw   *rand.Rand
	http2  bool
	number int
	body   string
}

// pay sends the request and checks the answer.
func (v *visit) pay(ctx context.Context, client *http.Client) (outcome, error) {
	v.body = small(v.number)
	id := fmt.Sprint("visit-", v.number)
	if v.draw.IntN(10) == 0 {
		id = sameID
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.URL+chatPath, strings.NewReader(v.body))
	if err != nil {
		return wrong, err
	}
	switch v.draw.IntN(12) {
	case 0:
		defer time.AfterFunc(between(v.draw, 0, 300*time.Millisecond), leave).Stop()
	case 1:
		part := v.body[:v.draw.IntN(len(v.body))]
		r.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader(part), leaver(leave))), nil
		}
		r.Body, _ = r.GetBody()
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Request-Id", id)

	res, err := client.Do(r)
	switch {
	case ctx.Err() != nil:
		return left, nil
	case err != nil && !v.http2 && v.reloads.Load() > 0 && !isTimeout(err):
		return unheard, nil
	case err != nil:
		return wrong, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	switch {
	case ctx.Err() != nil:
		return left, nil
	case isTimeout(err):
		return wrong, err
	case res.Header.Get("X-Request-Id") != id:
		return wrong, fmt.Errorf("x-request-id %q, want %q", res.Header.Get("X-Request-Id"), id)
	}
	o, err := v.judge(res, got, err)
	if err != nil {
		return wrong, fmt.Errorf("%w: status %d, %q", err, res.StatusCode, got[max(0, len(got)-1000):])
	}
	return o, nil
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// leaver is the rest of a body; it is never sent, because the client leaves.
type leaver context.CancelFunc

func (leave leaver) Read([]byte) (int, error) {
	leave()
	return 0, context.Canceled
}

// judge returns the outcome of a request that got at least a status. broken is the
// error that ended the answer early.
func (v *visit) judge(res *http.Response, got []byte, broken error) (outcome, error) {
	for _, number := range visitors.FindAllStringSubmatch(string(got), -1) {
		if number[1] != fmt.Sprint(v.number) {
			return wrong, errors.New("got the text of another client")
		}
	}
	want, err := fakevllm.Answer([]byte(v.body))
	if err != nil {
		return wrong, err
	}
	isStream := strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	if isStream {
		got = withoutComments(got)
	}
	switch {
	case broken == nil && res.StatusCode >= http.StatusBadRequest:
		return refused, checkError(got)
	case broken == nil && res.StatusCode == http.StatusOK:
		text, err := fakevllm.Text(got, isStream)
		if err == nil && text != want {
			err = fmt.Errorf("got %q, want %q", text, want)
		}
		return answered, err
	case broken != nil && isStream:
		return brokeOff, checkBroken(string(got), want)
	case broken != nil:
		return brokeOff, nil
	}
	return wrong, errors.New("unexpected status")
}

// small is mixed without large images, to send more requests.
func small(n int) string {
	parts := []string{text(fmt.Sprintf("request %d", n))}
	for i := range n % 4 {
		parts = append(parts, image(fmt.Sprintf("%08d", 10*n+i)+strings.Repeat("QUJD", (n*7919)%500)))
	}
	body := chat(fmt.Sprintf(`,"user":"u%d"`, n), parts...)
	if n%2 == 0 {
		body = stream(body)
	}
	return body
}

// visitors matches the sender of a request in its text.
var visitors = regexp.MustCompile(`user:u(\d+)["\\]`)

// checkError checks an error in OpenAI's form.
func checkError(raw []byte) error {
	var top map[string]map[string]any
	if err := json.Unmarshal(raw, &top); err != nil {
		return err
	}
	if len(top) != 1 || !slices.Equal(names(top["error"]), []string{"code", "message", "param", "type"}) {
		return errors.New("not an error in OpenAI's form")
	}
	if message, _ := top["error"]["message"].(string); message == "" {
		return errors.New("an error without a message")
	}
	return nil
}

// checkBroken checks a stream that broke off: the expected events, of which the last may be
// incomplete, then an error event.
func checkBroken(got, want string) error {
	events := strings.SplitAfter(got, "\n\n")
	last := len(events) - 2
	if last < 0 || events[last+1] != "" {
		return errors.New("no event with an error")
	}
	data, _ := strings.CutPrefix(events[last], "data: ")
	if err := checkError([]byte(data)); err != nil {
		return err
	}
	text := ""
	for i, e := range events[:last] {
		t, err := fakevllm.Text([]byte(e+"data: [DONE]\n\n"), true)
		if err != nil && i < last-1 {
			return err
		}
		text += t
	}
	if !strings.HasPrefix(want, text) {
		return fmt.Errorf("got %q, want the begin of %q", text, want)
	}
	return nil
}
