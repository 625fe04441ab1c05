package epdhandler

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// KV over MooncakeConnector, as in vLLM 0.32.0: mooncake_connector.py and mooncake_utils.py in
// vllm/distributed/kv_transfer/kv_connector/v1/mooncake, and the proxy in
// examples/disaggregated/mooncake_connector. Nothing else of the proxy knows of it.
//
// Prefill's answer says nothing of the blocks. Prefill and decode know a hand-over by a
// transfer_id of the proxy's, and decode asks the bootstrap server of the prefill instance where
// its workers are. It needs the id of the engine for that, which is another one after a restart.
//
// Prefill hands over what ends because it has all its tokens (FINISHED_LENGTH_CAPPED), and nothing
// else. Decode would wait for minutes for blocks that nobody has, so the one token must not be the
// last for another reason.

// Who hands over, and to whom. The members have vLLM's names.
type (
	mooncakePrefill struct {
		RemoteDecode  bool   `json:"do_remote_decode"`
		RemotePrefill bool   `json:"do_remote_prefill"`
		TransferID    string `json:"transfer_id"`
	}
	mooncakeDecode struct {
		mooncakePrefill
		EngineID  string `json:"remote_engine_id"`
		Bootstrap string `json:"remote_bootstrap_addr"`
	}
)

// mooncake makes the body of a call of prefill, anew for each time that it is sent, and returns
// what understands the answer.
func (x *exchange) mooncake(ctx context.Context, c *call, handles body.Edit) understanding {
	var transfer string
	c.renew = func() {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		transfer = hex.EncodeToString(id[:])
		params, _ := json.Marshal(mooncakePrefill{true, false, transfer}) // strings
		c.body = prefillBody(x.forConsumers(),
			body.Set(body.KVTransferParams, params),
			handles,
			body.Set(body.IgnoreEOS, "true"),
			body.Remove(body.Stop),
			body.Remove(body.StopTokenIDs))
	}
	c.renew()
	return func(answer []byte) (kv []byte, cached int, err error) {
		b, err := body.Parse(answer)
		if err != nil || finishReason(answer) != "length" {
			return nil, -1, err
		}
		at := x.h.bootstraps[c.upstream()]
		engine, err := at.engineID(ctx, c.asked)
		if err != nil {
			return nil, -1, fmt.Errorf("the bootstrap server (kv_bootstrap): %w", err)
		}
		kv, _ = json.Marshal(mooncakeDecode{mooncakePrefill{false, true, transfer}, engine, at.address}) // strings
		return kv, cachedTokens(b, nil), nil
	}
}

// bootstrap is the bootstrap server of an instance of prefill.
type bootstrap struct {
	address string

	mu   sync.Mutex
	last *bootstrapQuery
}

// bootstrapQuery is a question for the engine's id, which those share who need it.
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

// loadBootstraps makes the bootstrap servers of kv_bootstrap.
func (h *Handler) loadBootstraps() {
	if len(h.KVBootstrap) == 0 {
		return
	}
	h.bootstraps = make(map[string]*bootstrap)
	for upstream, address := range h.KVBootstrap {
		h.bootstraps[upstream] = &bootstrap{address: address}
	}
}

// engineID returns the id of the engine that has answered what it was sent at this time, or
// later. The server is a part of the engine, so that an answer of its own since then is of the
// same engine: a new one takes longer to start than the server may take to answer. Whoever has
// been sent something before the server was asked shares its answer, so it is asked once, and
// not once for each request, while many are at prefill.
func (b *bootstrap) engineID(ctx context.Context, since time.Time) (string, error) {
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

// answer answers a question. It belongs to no request: others may wait for it too.
func (b *bootstrap) answer(q *bootstrapQuery) {
	q.id, q.err = b.ask(context.Background())
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.err != nil && b.last == q {
		b.last = nil // the next one may have more luck
	}
	close(q.done)
}

// bootstraps are asked over connections of their own, which go to whoever listens now.
var bootstrapClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxBootstrap},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask asks for the id of the engine.
func (b *bootstrap) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.address+"/query", nil)
	if err != nil {
		return "", err
	}
	res, err := bootstrapClient.Do(r)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return "", failed.Err // without the address
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return "", statusError(res.StatusCode)
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
