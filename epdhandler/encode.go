package epdhandler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

const chatPath = "/v1/chat/completions"

// encode has every media item encoded, so many at a time as are allowed. The
// first item that fails for good ends the others.
func (x *exchange) encode() (f *failure) {
	if x.encoded || len(x.body.Items) == 0 {
		x.encoded = true
		return nil
	}
	if x.encoding == nil {
		x.plan()
	}
	ctx, leave := x.enter(&x.report.encode, x.encoding...)
	defer func() { leave(f) }()
	ctx, cancel := context.WithCancel(ctx) // not an errgroup's: its cancellation counts against healthy instances
	defer cancel()
	var (
		once    sync.Once
		first   *failure
		failing *attempts // of the first failure
		entries = make([][]body.Entry, len(x.batches))
		known   = make([]encoded, len(x.body.Items))
	)
	each(len(x.batches), x.h.EncodeConcurrency, func(i int) bool {
		var f *failure
		if entries[i], f = x.encodeBatch(ctx, i, known); f != nil {
			once.Do(func() { first, failing = f, x.encoding[i] })
			cancel()
		}
		return f == nil
	})
	if first != nil && x.mayBeOptional(first) {
		first.optional = x.harmless()
		x.logFailure(first, failing)
	}
	if first != nil && !first.optional {
		return first
	}
	x.encoded = true
	if first == nil {
		entries = append([][]body.Entry{x.ownEntries()}, entries...)
		x.handles = mergeEntries(append(entries, ecItems(known)))
		if x.uuids != nil {
			x.consumers = x.refer(known)
		}
	}
	return nil
}

// mayBeOptional reports whether a request may go on after a failure, which ends the attempts
// of an item: its consumer then encodes the media itself. That is not for encoders that are
// only busy, as the consumers would be then, nor where another encoder could have been asked.
func (x *exchange) mayBeOptional(f *failure) bool {
	return x.h.EncodeOptional && f.stage == "encode" && !f.unpaid && (f.reason == unavailable || f.reason == refused || f.isEngines())
}

// harmless reports whether no item may have made two encoders fail, which it would do to its
// consumer as well. With one, the consumer is the further attempt, if retries allows it.
func (x *exchange) harmless() bool {
	return !slices.ContainsFunc(x.encoding, func(a *attempts) bool { return a.poison > min(1, *x.h.Retries) })
}

// encodeBatch has a batch of media items encoded and returns the entries of the answer's
// ec_transfer_params. It puts what is known of the items then where it belongs.
func (x *exchange) encodeBatch(ctx context.Context, i int, known []encoded) ([]body.Entry, *failure) {
	for {
		entries, f := x.tryEncode(ctx, i, known)
		if f == nil {
			return entries, nil
		}
		if x.settle(x.encoding[i], f); f.final {
			return nil, f
		}
	}
}

func (x *exchange) tryEncode(ctx context.Context, i int, known []encoded) ([]body.Entry, *failure) {
	ctx, clock, cancel := watch(ctx, limit{"encode_timeout", time.Duration(x.h.EncodeTimeout)}, limit{})
	defer cancel()
	b := x.batches[i]
	id := x.engineID + ":" + strconv.Itoa(b[0]) + ":"
	c := &call{
		method: http.MethodPost,
		path:   chatPath,
		id:     id + hex6(),
		idHead: id,
		clock:  clock,
		items:  b,
	}
	var ids []string
	c.renew = func() {
		var push []byte
		if x.consumer != nil {
			ids, push = x.transfers(b)
		}
		c.body = encodeBody(x.body, x.content(nil, b), push)
	}
	c.renew()
	a, f := x.ask(ctx, x.encoding[i], c)
	var entries []body.Entry
	if f == nil {
		var err error
		if entries, err = x.understand(a.body.Bytes(), b, ids, known); err != nil {
			f = brokenAnswer("encode", c, err)
		} else {
			x.encoding[i].succeeds()
		}
	}
	if f != nil && len(b) == 1 { // else nobody says which
		f.item = x.body.Items[b[0]].Path()
	}
	return entries, f
}

// understand reads an encoder's answer.
func (x *exchange) understand(answer []byte, b batch, ids []string, known []encoded) ([]body.Entry, error) {
	entries, err := transferEntries(answer)
	if err != nil || x.uuids == nil {
		return entries, err
	}
	items, err := x.told(b, entries, ids)
	for n := range items {
		known[b[n]] = items[n]
	}
	return entries, err
}

// ask makes an attempt whose answer is for the proxy.
func (x *exchange) ask(ctx context.Context, a *attempts, c *call) (*answer, *failure) {
	a.begin(c)
	defer a.note(c)
	answer := &answer{room: x.room}
	err := x.do(ctx, a.pool, c, answer)
	f := judge(ctx, a.pool.stage, c, answer, err)
	c.end(f)
	return answer, f
}

// encodeBody is the request that has media items encoded, given as content parts (vLLM
// 0.11.1's contract for one, that of 0.31.0 for more). What decides how media are
// processed goes along: with other options on both sides the consumer would not find the
// embeddings. So does the template of a chat, which a model may not have itself.
func encodeBody(b *body.Body, content [][]byte, push []byte) *body.Segments {
	parts := make([][]byte, 0, 16+len(content))
	parts = append(parts, []byte("{"))
	if model := b.Value(body.Model); model != nil {
		parts = append(parts, []byte(`"model":`), model, []byte(","))
	}
	parts = append(parts, []byte(`"messages":[{"role":"user","content":[`))
	parts = append(parts, content...)
	parts = append(parts, []byte(`]}],"max_tokens":1,"stream":false`))
	for _, f := range []body.Field{body.MMProcessorKwargs, body.MediaIOKwargs, body.ChatTemplate, body.ChatTemplateKwargs, body.Priority, body.SessionID} {
		if v := b.Value(f); v != nil {
			parts = append(parts, []byte(`,"`+f.String()+`":`), v)
		}
	}
	if push != nil {
		parts = append(parts, []byte(`,"ec_transfer_params":`), push)
	}
	return b.Join(append(parts, []byte("}"))...)
}

// transferEntries returns the entries of an encoder's ec_transfer_params. That
// there are none is fine.
func transferEntries(answer []byte) ([]body.Entry, error) {
	b, err := body.Parse(answer)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	params := b.Value(body.ECTransferParams)
	if params == nil || body.IsNull(params) {
		return nil, nil
	}
	if !body.IsObject(params) {
		return nil, errors.New("ec_transfer_params is no object")
	}
	return b.Options(body.ECTransferParams), nil
}

// ownEntries are the ec_transfer_params that a trusted client has sent itself.
func (x *exchange) ownEntries() []body.Entry {
	if !x.h.TrustClients {
		return nil
	}
	return x.body.Options(body.ECTransferParams)
}

// mergeEntries makes one object of the entries of all items, nil if there are
// none. Items with the same media share an entry, the last one's.
func mergeEntries(items [][]body.Entry) []byte {
	var merged []body.Entry
	at := make(map[string]int)
	for _, entries := range items {
		for _, e := range entries {
			if i, ok := at[string(e.Name)]; ok {
				merged[i] = e
				continue
			}
			at[string(e.Name)] = len(merged)
			merged = append(merged, e)
		}
	}
	if merged == nil {
		return nil
	}
	return object(merged)
}

// object is a JSON object of entries.
func object(entries []body.Entry) []byte {
	var out bytes.Buffer
	for i, e := range entries {
		out.WriteByte("{,"[min(i, 1)])
		out.Write(e.Name)
		out.WriteByte(':')
		out.Write(e.Value)
	}
	out.WriteByte('}')
	return out.Bytes()
}
