package epdhandler

import (
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// input is what a client asks for.
type input struct {
	body    *body.Body // nil when no engine needs it any more
	media   *media.Set // in the body
	memory  *memory.Buffer
	room    *memory.Share // of the memory of all
	chat    bool
	streams bool   // the client wants a stream
	without string // the member for which decode does without prefill; empty: it does not
}

// release gives the body's memory back, as soon as no engine reads it any more.
func (in *input) release() {
	if in != nil {
		in.memory.Release()
		in.body, in.media, in.memory = nil, nil, nil
	}
}
