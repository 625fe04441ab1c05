package dispatch

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

type record struct {
	firstByte     prometheus.Observer
	failureCount  prometheus.Counter
	ejectionCount prometheus.Counter

	lock     sync.Mutex
	used     time.Time
	did      Summary         // only what is counted
	times    []time.Duration // to the first byte of the last answers, the newest at the end
	failures []Failure       // the last ones, the newest at the end
	ejection ejection

	withholds bool // the last answer of prefill that should have had KV blocks had none
}

// Failure is a failed attempt.
type Failure struct {
	At     time.Time        `json:"at"`
	Reason telemetry.Reason `json:"reason"`
}

// So many times and failures are kept.
const maxKept = 100

// Answered notes an answer, and how long it took to begin.
func (r *record) Answered(after time.Duration) {
	r.firstByte.Observe(after.Seconds())
	r.lock.Lock()
	defer r.lock.Unlock()
	r.used = time.Now()
	r.did.Answers++
	r.times = append(r.times[max(0, len(r.times)+1-maxKept):], after)
}

// Failed notes a failed attempt.
func (r *record) Failed(why telemetry.Reason) {
	r.failureCount.Inc()
	r.lock.Lock()
	defer r.lock.Unlock()
	r.used = time.Now()
	r.failures = append(r.failures[max(0, len(r.failures)+1-maxKept):], Failure{r.used, why})
}

// HandedOver notes whether an answer of prefill had KV blocks, and if it says something of the
// instance, reports whether that is news.
func (r *record) HandedOver(blocks, says bool) (changed bool) {
	r.lock.Lock()
	defer r.lock.Unlock()
	if blocks {
		r.did.Blocks++
	} else {
		r.did.None++
	}
	if changed = r.withholds == blocks && says; changed {
		r.withholds = !blocks
	}
	return changed
}

func (r *record) touch() {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.used = time.Now()
}

func (r *record) idleSince(then time.Time) bool {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.used.Before(then)
}

// Summary is what an instance did lately.
type Summary struct {
	Answers     int           // all of them
	Median, P95 time.Duration // to the first byte of the last answers; 0: there are none
	Recent      int           // failures in the time that was asked for
	Last        *Failure      // nil: none

	Blocks, None int // answers of prefill with and without KV blocks
}

// Summary sums the record up, with the failures of the last while.
func (r *record) Summary(while time.Duration) Summary {
	r.lock.Lock()
	defer r.lock.Unlock()
	s := r.did
	if times := slices.Sorted(slices.Values(r.times)); len(times) > 0 {
		quantile := func(q float64) time.Duration { return times[int(q*float64(len(times)-1)+0.5)] }
		s.Median, s.P95 = quantile(0.5), quantile(0.95)
	}
	since := time.Now().Add(-while)
	for _, f := range r.failures {
		if f.At.After(since) {
			s.Recent++
		}
	}
	if n := len(r.failures); n > 0 {
		s.Last = &r.failures[n-1] // which never changes
	}
	return s
}
