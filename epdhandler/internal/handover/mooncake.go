package handover

import (
	"context"
	"crypto/rand"
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

// Mooncake is MooncakeConnector, as in vLLM 0.32.0: mooncake_connector.py and mooncake_utils.py in
// vllm/distributed/kv_transfer/kv_connector/v1/mooncake, and the proxy in
// examples/disaggregated/mooncake_connector.
//
// Prefill's answer says nothing of the blocks. Prefill and decode know a hand-over by a
// transfer_id of the proxy's. Decode asks the bootstrap server of the prefill instance where
// its workers are, and needs the id of the engine for that, which changes with a restart.
//
// Prefill hands over only what ends because it has all its tokens (FINISHED_LENGTH_CAPPED). Decode
// would wait for minutes for other blocks, so the one token must not end the answer in another way.
type Mooncake map[string]*Bootstrap // by the address of the instance of prefill

// mooncakeParams are kv_transfer_params. Only decode gets the last two.
type mooncakeParams struct {
	RemoteDecode  bool   `json:"do_remote_decode"`
	RemotePrefill bool   `json:"do_remote_prefill"`
	TransferID    string `json:"transfer_id"`
	EngineID      string `json:"remote_engine_id,omitempty"`
	Bootstrap     string `json:"remote_bootstrap_addr,omitempty"`
}

// Request implements Connector.
func (m Mooncake) Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	transfer := fmt.Sprintf("%x", id)
	params, _ := json.Marshal(mooncakeParams{RemoteDecode: true, TransferID: transfer}) // strings
	r := request(prompt,
		body.Set(body.KVTransferParams, params),
		embeddings,
		body.Set("ignore_eos", "true"),
		body.Remove("stop"),
		body.Remove("stop_token_ids"))
	return r, func(ctx context.Context, answer []byte, address string, sent time.Time) (Blocks, error) {
		none := Blocks{Made: time.Now(), Cached: -1}
		b, err := body.Parse(answer)
		if err != nil || FinishReason(answer) != "length" {
			return none, err
		}
		at := m[address]
		engine, err := at.engineID(ctx, sent)
		if err != nil {
			return none, fmt.Errorf("the bootstrap server (kv_bootstrap): %w", err)
		}
		params, _ := json.Marshal(mooncakeParams{false, true, transfer, engine, at.Address}) // strings
		return Blocks{params, none.Made, cachedTokens(b)}, nil
	}
}

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
