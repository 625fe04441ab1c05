package epdhandler

import (
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// input is the indexed body of a client's request.
type input struct {
	body    *body.Body // nil when engines no longer need it
	media   *media.Set // in the body
	memory  *memory.Buffer
	room    *memory.Share // the request's share of max_memory
	chat    bool
	streams bool   // the client wants a stream
	without string // the member because of which prefill is skipped; empty: it is not skipped
}

// release frees the body's memory, as soon as engines no longer read it.
func (in *input) release() {
	if in != nil {
		in.memory.Release()
		in.body, in.media, in.memory = nil, nil, nil
	}
}
