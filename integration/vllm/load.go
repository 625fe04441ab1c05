//go:build unix

package main

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// load is clients that send one request after the other, each about a new image.
type load struct {
	stop func()

	mu    sync.Mutex
	asked []exchange
	count atomic.Int64
}

// exchange is a request of the load and its answer.
type exchange struct {
	request requests.Request
	answer  answer
	err     error
}

const (
	clients = 3           // concurrent clients
	pause   = time.Second // of a client between two requests: all answers are compared with those of the single engine
)

// startLoad starts the clients.
func (s *suite) startLoad(ctx context.Context, p *proxy) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{}
	var wait sync.WaitGroup
	for range clients {
		wait.Go(func() {
			for ctx.Err() == nil {
				l.ask(ctx, p)
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() {
		cancel()
		wait.Wait()
	})
	return l
}

// ask sends one request; one that is cut off by the end of the load does not count.
func (l *load) ask(ctx context.Context, p *proxy) {
	r := requests.AboutImage(pattern(rand.Uint64()), 24).Streamed()
	a, err := ask(ctx, p.client, p.url(), r)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, exchange{r, a, err})
	l.count.Add(1)
}

// more waits for n further answers.
func (l *load) more(ctx context.Context, n int64) error {
	want := l.count.Load() + n
	return until(ctx, answerTime, func(context.Context) (bool, error) { return l.count.Load() >= want, nil })
}

// since returns all exchanges but the first n.
func (l *load) since(n int64) []exchange {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asked[n:])
}

// kinds counts right answers, and clean errors by outcome, and lists all other answers. Answers
// are compared with those of the single engine.
func (s *suite) kinds(ctx context.Context, f *fleet, list []exchange) (right int, failed map[string]int, wrong []string) {
	failed = map[string]int{}
	for _, a := range list {
		switch {
		case a.err != nil:
			wrong = append(wrong, a.err.Error())
		case a.answer.Status != http.StatusOK && a.answer.Status < http.StatusInternalServerError:
			wrong = append(wrong, outcome(a.answer)+": "+brief(a.answer.Body))
		case a.answer.Status != http.StatusOK:
			failed[outcome(a.answer)]++
			if d := errorForm(a.answer.Body); d != "" {
				wrong = append(wrong, d)
			}
		case a.answer.Failed == failedEvent:
			failed[outcome(a.answer)]++
		default:
			want, err := s.ask(ctx, nil, f.engines["single"].url(), a.request)
			if err != nil {
				wrong = append(wrong, "the one engine: "+err.Error())
			} else if d := difference(want, a.answer); d != "" {
				wrong = append(wrong, d)
			} else {
				right++
			}
		}
	}
	return right, failed, wrong
}
