package epdhandler

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// history is what an instance has done lately.
type history struct {
	firstByte prometheus.Observer
	failures  prometheus.Counter
	ejections prometheus.Counter

	mu       sync.Mutex
	used     time.Time
	answers  int             // all of them
	times    []time.Duration // to the first byte of the last answers, the newest at the end
	failings []failing       // the last ones, the newest at the end
	outlier  outlier

	// Of an instance of prefill: what it has handed over, and whether it did the last time
	// that it should have.
	blocks, none int
	withholds    bool
}

// failing is a failed attempt.
type failing struct {
	At     time.Time `json:"at"`
	Reason reason    `json:"reason"`
}

const (
	maxTimes    = 100
	maxFailings = 100

	// historyKept is how long an instance is remembered that has nothing to do, such as
	// one of a dynamic pool that is gone for good.
	historyKept = time.Hour
)

var histories = struct {
	sync.Mutex
	of map[instance]*history
}{of: make(map[instance]*history)}

// historyOf returns the history of an instance, a new one if there is none.
func historyOf(at instance) *history {
	histories.Lock()
	defer histories.Unlock()
	h := histories.of[at]
	if h == nil {
		forgetIdle(time.Now().Add(-historyKept))
		h = &history{
			firstByte: upstreamFirstByte.WithLabelValues(at.stage, at.address),
			failures:  upstreamFailures.WithLabelValues(at.stage, at.address),
			ejections: upstreamEjections.WithLabelValues(at.stage, at.address),
			used:      time.Now(),
		}
		histories.of[at] = h
	}
	return h
}

// forgetIdle drops the histories that have not changed since then, with their metrics,
// unless the instance is written down in a configuration. histories must be locked.
func forgetIdle(since time.Time) {
	known := make(map[instance]bool)
	for _, h := range liveHandlers() {
		for _, p := range h.pools() {
			for _, u := range p.handler.Upstreams {
				known[instance{p.stage, u.String()}] = true
			}
		}
	}
	for at, h := range histories.of {
		h.mu.Lock()
		if h.used.Before(since) && !known[at] {
			delete(histories.of, at)
			upstreamFirstByte.DeleteLabelValues(at.stage, at.address)
			upstreamFailures.DeleteLabelValues(at.stage, at.address)
			upstreamEjections.DeleteLabelValues(at.stage, at.address)
			h.outlier.end()
		}
		h.mu.Unlock()
	}
}

// answered notes an answer, and how long it took to begin.
func (h *history) answered(after time.Duration) {
	h.firstByte.Observe(after.Seconds())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used = time.Now()
	h.answers++
	h.times = last(append(h.times, after), maxTimes)
}

// failed notes a failed attempt.
func (h *history) failed(why reason) {
	h.failures.Inc()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used = time.Now()
	h.failings = last(append(h.failings, failing{h.used, why}), maxFailings)
}

// last returns the last n elements of a list that has one more at most.
func last[E any](list []E, n int) []E {
	if len(list) <= n {
		return list
	}
	return slices.Delete(list, 0, 1)
}

// since returns the failures since then.
func (h *history) since(then time.Time) []failing {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.failings, func(f failing) bool { return f.At.After(then) })
	if i < 0 {
		return nil
	}
	return slices.Clone(h.failings[i:])
}

// quantile returns the time below which a share q of the last answers have begun, 0 if
// there are none.
func (h *history) quantile(q float64) time.Duration {
	h.mu.Lock()
	times := slices.Clone(h.times)
	h.mu.Unlock()
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[int(q*float64(len(times)-1)+0.5)]
}
