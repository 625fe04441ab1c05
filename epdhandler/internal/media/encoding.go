package media

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// The contract with encoders: vLLM 0.11.1's for one item in a request, that of 0.31.0 for more.
// An encoder says in ec_transfer_params where the embeddings are, and consumers get what all
// encoders have said, merged.
//
// Encoders with Mooncake push embeddings instead. They are told the control address of the
// consumer and an id for each transfer, and the consumer is told which transfers are for it.

// Request returns the request that has a batch encoded. If embeddings are pushed, consumer is the
// control address of the instance that gets them, and ids are those of the transfers. They are
// new ones each time, because none may be used twice.
func (p *Plan) Request(batch int, consumer string) (request *body.Segments, ids []string) {
	var push []byte
	b := p.Batches[batch]
	if consumer != "" {
		ids, push = p.transfers(b, consumer)
	}
	return p.set.request(p.content(b), push), ids
}

// content returns the content parts of a batch.
func (p *Plan) content(b Batch) (parts [][]byte) {
	for n, i := range b {
		if n > 0 {
			parts = append(parts, []byte(","))
		}
		parts = p.set.appendAlone(parts, p.set.items[i], p.quotedUUID(i))
	}
	return parts
}

// request is the request to an encoder. What decides how media are processed goes along: with
// other options on both sides the consumer would not find the embeddings. So does the template of
// a chat, which a model may not have itself.
func (s *Set) request(content [][]byte, push []byte) *body.Segments {
	b := s.body
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

// A transfer is one embedding on its way to the consumer.
type transfer struct {
	Hash json.RawMessage `json:"mm_hash"` // the encoder's name for it
	ID   string          `json:"transfer_id"`
}

// transfers returns what an encoder needs to push the embeddings of a batch, and the
// ids in it: one for each embedding.
func (p *Plan) transfers(b Batch, consumer string) (ids []string, params []byte) {
	type transfer struct {
		ID string `json:"transfer_id"`
	}
	var items []transfer
	add := func() {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		ids = append(ids, hex.EncodeToString(id[:]))
		items = append(items, transfer{ids[len(ids)-1]})
	}
	for _, i := range b {
		if add(); p.set.withSound(p.set.items[i]) {
			add()
		}
	}
	params, _ = json.Marshal(map[string]any{"consumer_zmq": consumer, "ec_items": items}) // strings
	return ids, params
}

// ecItems tells the consumer which transfers are for it, in the order of the media items.
func ecItems(items []embedding) []body.Entry {
	var list []transfer
	for _, item := range items {
		list = append(list, item.transfers...)
	}
	if list == nil {
		return nil
	}
	value, _ := json.Marshal(list) // strings
	return []body.Entry{{Name: []byte(`"ec_items"`), Value: value}}
}

// An Answer is what an encoder says of a batch.
type Answer struct {
	entries []body.Entry // of ec_transfer_params
	items   []embedding  // of the batch; nil if engines do not get to know uuids
}

// Read reads an encoder's answer to a [Plan.Request] with these ids.
func (p *Plan) Read(batch int, answer []byte, ids []string) (Answer, error) {
	entries, err := transferEntries(answer)
	if err != nil || p.uuids == nil {
		return Answer{entries: entries}, err
	}
	items, err := p.embeddings(p.Batches[batch], entries, ids)
	return Answer{entries, items}, err
}

// transferEntries returns the entries of an encoder's ec_transfer_params. There need not
// be any.
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
