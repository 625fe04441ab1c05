package media

import (
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Encoded is what consumers of the embeddings get, when all media of a request have been encoded.
type Encoded struct {
	// Body is the request for consumers: with references to the embeddings, or with the uuids by
	// which the media were encoded, or as the client sent it.
	Body *body.Body

	// Refers is whether there are references in Body.
	Refers bool

	// Handles is the ec_transfer_params for consumers, nil if encoders gave none.
	Handles []byte

	plan *Plan
}

// Encoded returns what the answers of the encoders make, one for each batch. A trusted client's
// own ec_transfer_params are added to theirs.
func (p *Plan) Encoded(answers []Answer) Encoded {
	items := make([]embedding, len(p.set.items))
	entries := make([][]body.Entry, 0, len(answers)+2)
	if p.set.trusted {
		entries = append(entries, p.set.body.Options(body.ECTransferParams))
	}
	for i, a := range answers {
		entries = append(entries, a.entries)
		for n, item := range a.items {
			items[p.Batches[i][n]] = item
		}
	}
	e := Encoded{Body: p.set.body, Handles: mergeEntries(append(entries, ecItems(items))), plan: p}
	if p.uuids != nil {
		e.Body, e.Refers = p.refer(items)
	}
	return e
}

// WithoutReferences returns the same with media in the place of references, and the uuids by which
// the media were encoded.
func (e Encoded) WithoutReferences() Encoded {
	if e.Refers {
		e.Body, e.Refers = e.plan.withUUIDs(), false
	}
	return e
}

// refer returns the client's body with references, if encoders have told what each item needs.
// Else media stay as they are and get the uuid by which they were encoded, or engines would not find
// the embeddings. No request has both: an engine takes no references beside media of one modality, and
// a model whose processor takes all media at once none at all (seen with Qwen2.5-Omni of vLLM 0.32.0).
func (p *Plan) refer(items []embedding) (b *body.Body, refers bool) {
	refers = p.references
	for i := range p.set.items {
		refers = refers && items[p.original[i]].reference != nil
	}
	if !refers {
		return p.withUUIDs(), false
	}
	patches := make([]body.Patch, 0, 3*len(p.set.items))
	for i, item := range p.set.items {
		patches = append(patches, item.refer(items[p.original[i]].reference)...)
		patches = p.addUUID(patches, i)
	}
	return p.set.body.Patched(patches), true
}
