package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Bootstrap is the bootstrap server of an instance of prefill.
type Bootstrap struct {
	Address string

	mu   sync.Mutex
	last *bootstrapQuery
}

// bootstrapQuery is a question for the engine's id, whose answer requests share.
type bootstrapQuery struct {
	asked time.Time
	done  chan struct{}
	id    string
	err   error
}

const (
	bootstrapTimeout = 5 * time.Second
	maxBootstrap     = 64 << 10 // bytes of an answer
)

// engineID returns the id of the engine that has answered what it was sent at this time, or
// later. The server is a part of the engine, and a new engine takes longer to start than the
// server may take to answer, so an answer of the server since then is of the same engine. It is
// not asked for each request: those sent something before it was asked share its answer.
func (b *Bootstrap) engineID(ctx context.Context, since time.Time) (string, error) {
	b.mu.Lock()
	q := b.last
	if q == nil || q.asked.Before(since) {
		q = &bootstrapQuery{asked: time.Now(), done: make(chan struct{})}
		b.last = q
		go b.answer(q)
	}
	b.mu.Unlock()
	select {
	case <-q.done:
		return q.id, q.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// answer answers a query. It does not end with a request, because others may wait for it too.
func (b *Bootstrap) answer(q *bootstrapQuery) {
	q.id, q.err = b.Ask(context.Background())
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.err != nil && b.last == q {
		b.last = nil // a failure is not kept
	}
	close(q.done)
}

// bootstrapClient uses a new connection each time, which goes to whoever listens now.
var bootstrapClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxBootstrap},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Ask asks for the id of the engine.
func (b *Bootstrap) Ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.Address+"/query", nil)
	if err != nil {
		return "", err
	}
	res, err := bootstrapClient.Do(r)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return "", failed.Err // without the address
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", res.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxBootstrap))
	if err != nil {
		return "", err
	}
	var ranks map[string]struct {
		EngineID string `json:"engine_id"`
	}
	if json.Unmarshal(text, &ranks) != nil {
		return "", errors.New("its answer is none of a bootstrap server")
	}
	if len(ranks) > 1 {
		return "", fmt.Errorf("it knows %d data-parallel ranks, and nobody says which one prefills; start an instance with its own server for each", len(ranks))
	}
	for _, rank := range ranks {
		if rank.EngineID != "" {
			return rank.EngineID, nil
		}
	}
	return "", errors.New("no engine has registered with it")
}
