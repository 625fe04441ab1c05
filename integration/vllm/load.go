package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// load is clients that ask again and again, each time about an image of its own.
type load struct {
	stop func()

	mu    sync.Mutex
	asked []exchange
	count atomic.Int64
}

// exchange is a request of the load, and what came of it.
type exchange struct {
	request requests.Request
	answer  answer
	err     error
}

const (
	clients = 3           // how many ask at a time
	pause   = time.Second // of a client, between two requests: all answers are held against the one engine's
)

// startLoad starts them.
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

// ask asks once; a request that is cut off by the end of the load does not count.
func (l *load) ask(ctx context.Context, p *proxy) {
	r := requests.AboutImage(pattern(rand.Uint64()), 24).Streamed()
	limit, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	a, err := ask(limit, p.client, p.url(), r)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, exchange{r, a, err})
	l.count.Add(1)
}

// more waits until n further requests have been answered.
func (l *load) more(ctx context.Context, n int64) error {
	want := l.count.Load() + n
	return until(ctx, answerTime, func(context.Context) (bool, error) { return l.count.Load() >= want, nil })
}

// since returns what has been answered since the first n.
func (l *load) since(n int) []exchange {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asked[n:])
}

// pattern is an image that no encoder has seen.
func pattern(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, seed))
	picture := image.NewRGBA(image.Rect(0, 0, 56, 56))
	for y := range 56 {
		for x := range 56 {
			picture.Set(x, y, color.RGBA{uint8(random.Uint32()), uint8(4 * x), uint8(4 * y), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, picture); err != nil {
		panic(err) // a buffer takes all
	}
	return b.Bytes()
}

// kinds sorts what came of requests: right answers, clean errors by their outcome, and what is
// neither. Answers are held against those of the one engine.
func (s *suite) kinds(ctx context.Context, f *fleet, list []exchange) (right int, errors map[string]int, wrong []string) {
	errors = map[string]int{}
	for _, a := range list {
		switch {
		case a.err != nil:
			wrong = append(wrong, a.err.Error())
		case a.answer.Status != http.StatusOK:
			errors[outcome(a.answer)]++
			if d := errorForm(a.answer.Body); d != "" {
				wrong = append(wrong, d)
			}
		case a.answer.Failed == failedEvent:
			errors[outcome(a.answer)]++
		default:
			want, err := ask(ctx, s.direct, f.engines["single"].url(), a.request)
			if err != nil {
				wrong = append(wrong, "the one engine: "+err.Error())
			} else if d := difference(want, a.answer); d != "" {
				wrong = append(wrong, d)
			} else {
				right++
			}
		}
	}
	return right, errors, wrong
}

func describe(right int, errors map[string]int) string {
	return fmt.Sprintf("%d right, %v", right, errors)
}
