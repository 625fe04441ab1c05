package media

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// The contract with encoders: vLLM 0.11.1's for one item in a request, that of 0.31.0 for more. An encoder
// says in ec_transfer_params where the embeddings are, and consumers get what all have said, merged.
// Encoders with Mooncake push embeddings instead. They are told the control address of the consumer and
// an id for each transfer, and the consumer is told which transfers are for it.

// Request returns the request that has a batch encoded. If embeddings are pushed, consumer is the control
// address of the instance that gets them, and ids are of the transfers: new ones, as none may be used
// twice. What decides how media are processed goes along: with other options on both sides the consumer
// would not find the embeddings. So does the template of a chat, which a model may not have itself.
func (p *Plan) Request(batch int, consumer string) (request *body.Segments, ids []string) {
	b := p.set.body
	parts := append(make([][]byte, 0, 24+8*len(p.Batches[batch])), []byte("{"))
	if model := b.Value("model"); model != nil {
		parts = append(parts, []byte(`"model":`), model, []byte(","))
	}
	parts = append(parts, []byte(`"messages":[{"role":"user","content":[`))
	for n, i := range p.Batches[batch] {
		if n > 0 {
			parts = append(parts, []byte(","))
		}
		parts = p.set.appendAlone(parts, p.set.items[i], p.quotedUUID(i))
	}
	parts = append(parts, []byte(`]}],"max_tokens":1,"stream":false`))
	for _, name := range []string{body.MMProcessorKwargs, body.MediaIOKwargs, "chat_template", "chat_template_kwargs", "priority", "session_id"} {
		if v := b.Value(name); v != nil {
			parts = append(parts, []byte(`,"`+name+`":`), v)
		}
	}
	if consumer != "" {
		var push []byte
		ids, push = p.transfers(p.Batches[batch], consumer)
		parts = append(parts, []byte(`,"ec_transfer_params":`), push)
	}
	return b.Join(append(parts, []byte("}"))...), ids
}

// A transfer is one embedding on its way to the consumer.
type transfer struct {
	Hash json.RawMessage `json:"mm_hash,omitempty"` // the encoder's name for it
	ID   string          `json:"transfer_id"`
}

// transfers returns what an encoder needs to push the embeddings of a batch, and the ids in it, one each.
func (p *Plan) transfers(batch []int, consumer string) (ids []string, params []byte) {
	items := make([]transfer, len(batch), len(batch)+1)
	if p.set.withSound(p.set.items[batch[0]]) { // which is alone in its batch
		items = append(items, transfer{})
	}
	for n := range items {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		items[n].ID = hex.EncodeToString(id[:])
		ids = append(ids, items[n].ID)
	}
	params, _ = json.Marshal(map[string]any{"consumer_zmq": consumer, "ec_items": items}) // strings
	return ids, params
}

// Encoded is what consumers of the embeddings get, when all media of a request have been encoded.
type Encoded struct {
	// Body is the request for consumers: with references to the embeddings, or with the uuids by
	// which the media were encoded, or as the client sent it.
	Body    *body.Body
	Refers  bool   // there are references in Body
	Handles []byte // the ec_transfer_params for consumers, nil if encoders gave none
	plan    *Plan
}

// Encoded returns what the answers of the encoders make, one for each batch. A trusted client's own
// ec_transfer_params are added to theirs. There are references if encoders have told what each item
// needs. Else media stay as they are and get the uuid by which they were encoded, or engines would not
// find the embeddings. No request has both: an engine takes no references beside media of one modality,
// and a model whose processor takes all media at once none at all (seen with Qwen2.5-Omni of vLLM 0.32.0).
func (p *Plan) Encoded(answers []Answer) Encoded {
	items := make([]embedding, len(p.set.items))
	var handles body.Members
	if p.set.trusted {
		handles = append(handles, p.set.body.Members(body.ECTransferParams)...)
	}
	for i, a := range answers {
		handles = append(handles, a.entries...)
		for n, item := range a.items {
			items[p.Batches[i][n]] = item
		}
	}
	var transfers []transfer // in the order of the media items
	for _, item := range items {
		transfers = append(transfers, item.transfers...)
	}
	if transfers != nil {
		value, _ := json.Marshal(transfers) // strings
		handles = append(handles, body.Entry{Name: []byte(`"ec_items"`), Value: value})
	}
	e := Encoded{Body: p.set.body, Refers: p.references, Handles: object(handles), plan: p}
	for _, original := range p.original {
		e.Refers = e.Refers && items[original].reference != nil
	}
	switch {
	case e.Refers:
		e.Body = p.patched(items)
	case p.uuids != nil:
		e.Body = p.patched(nil)
	}
	return e
}

// WithoutReferences returns the same with media, and the uuids by which they were encoded, instead.
func (e Encoded) WithoutReferences() Encoded {
	if e.Refers {
		e.Body, e.Refers = e.plan.patched(nil), false
	}
	return e
}

// patched returns the client's body with the uuids by which media are encoded, and with references, if any.
func (p *Plan) patched(items []embedding) *body.Body {
	var patches []body.Patch
	for i, item := range p.set.items {
		if items != nil {
			patches = append(patches, item.refer(items[p.original[i]].reference)...)
		}
		if item.UUID == "" {
			patches = append(patches, item.setUUID(p.quotedUUID(i)))
		}
	}
	return p.set.body.Patched(patches)
}

// quotedUUID is the hash of an item without a uuid of the client, as JSON, nil if engines do not get it.
func (p *Plan) quotedUUID(i int) []byte {
	if p.uuids == nil {
		return nil
	}
	return []byte(`"` + p.uuids[i] + `"`)
}

// object returns a JSON object of these members, nil if there are none. Of equal names, which equal media
// have, the last one counts.
func object(members body.Members) []byte {
	last := make(map[string]int)
	for i, m := range members {
		last[string(m.Name)] = i
	}
	var out []byte
	for i, m := range members {
		if last[string(m.Name)] == i {
			out = append(append(append(append(out, ','), m.Name...), ':'), m.Value...)
		}
	}
	if out == nil {
		return nil
	}
	out[0] = '{'
	return append(out, '}')
}

// setUUID returns the patch that gives the item a uuid, a JSON string.
func (i Item) setUUID(uuid []byte) body.Patch {
	if i.uuid.End > 0 {
		return body.Patch{Range: i.uuid, With: uuid}
	}
	end := i.Range.End - 1
	return body.Patch{Range: body.Range{Start: end, End: end}, With: append([]byte(`,"uuid":`), uuid...)}
}

// refer returns the patches that replace the media of an item by a reference: a part of another type, with
// these members in the place of the media. All else stays, because vLLM hands it to the chat template.
func (i Item) refer(members []byte) []body.Patch {
	typ := []byte(`"` + embeds(i.Modality()) + `"`)
	if i.typ.Empty() {
		return []body.Patch{{Range: i.member, With: bytes.Join([][]byte{[]byte(`"type":`), typ, []byte(","), members}, nil)}}
	}
	return []body.Patch{{Range: i.typ, With: typ}, {Range: i.member, With: members}}
}

// maxFormat is the longest format of input_audio that is looked at.
const maxFormat = 64

// embeds is the member and the type of a part with a reference to media of a modality.
func embeds(modality string) string { return modality + "_embeds" }

// appendAlone appends the part of an item, with a uuid if there is one, in a form in which vLLM takes it as
// the only part of a message. It is stricter then: unless there is a uuid, the part must have its type,
// the URL must be in an object, and the format of input_audio must be one of OpenAI's.
func (s *Set) appendAlone(pieces [][]byte, i Item, uuid []byte) [][]byte {
	b := s.body
	format := b.Slice(i.format)
	common := i.Kind != inputAudio || body.IsString(format, "wav") || body.IsString(format, "mp3")
	open := func(kind string) []byte { return []byte(`{"type":"` + kind + `","` + kind + `":`) }
	switch {
	case i.UUID != "":
		return append(pieces, b.Slice(i.Range))
	case i.uuid.Empty() && !i.isString() && common && body.IsString(b.Slice(i.typ), i.Kind):
		pieces = append(pieces, b.Slice(body.Range{Start: i.Range.Start, End: i.Range.End - 1}))
	case i.isString():
		pieces = append(pieces, open(i.Kind), []byte(`{"url":`), b.Slice(i.value), []byte("}"))
	case !common && len(format) <= maxFormat:
		// this is what vLLM makes of it
		pieces = append(pieces, open(audioURL), []byte(`{"url":"data:audio/`), formatText(format), []byte(`;base64,`), b.Slice(i.payload), []byte(`"}`))
	case i.Kind == inputAudio:
		pieces = append(pieces, open(i.Kind), b.Slice(i.value))
	default: // without detail and the like, which would have to be right then
		url := body.Range{Start: i.payload.Start - 1, End: i.payload.End + 1}
		pieces = append(pieces, open(i.Kind), []byte(`{"url":`), b.Slice(url), []byte("}"))
	}
	if uuid != nil {
		pieces = append(pieces, []byte(`,"uuid":`), uuid)
	}
	return append(pieces, []byte("}"))
}

// formatText is how vLLM writes the format of input_audio into a URL, as the inside of a JSON string.
func formatText(format []byte) []byte {
	switch {
	case len(format) == 0:
		return nil
	case format[0] != '"':
		return []byte("None")
	}
	return format[1 : len(format)-1]
}
