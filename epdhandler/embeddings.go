package epdhandler

import (
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// embeddings is what encode makes of the media of a request, for the stage that consumes them.
type embeddings struct {
	media.Encoded

	stage    string              // that consumes them
	pushedTo *engine.Reservation // the instance that has them; nil: they can be fetched
	consumed bool                // by a prefill that has succeeded
}

// release lets go of the instance that the embeddings were pushed to.
func (e *embeddings) release() {
	if e != nil {
		e.pushedTo.Release()
	}
}

// serveOnce reports whether only one engine can get the embeddings, once.
func (e *embeddings) serveOnce() bool { return e.Handles != nil || e.pushedTo != nil }

// spentBy reports whether a failure has spent the embeddings. If the prefill that consumed them
// is done again, it needs new ones.
func (e *embeddings) spentBy(f *failure, prefillAgain bool) bool {
	switch {
	case e == nil || !e.serveOnce():
		return false
	case prefillAgain:
		return true
	case e.pushedTo != nil && !e.consumed:
		return true // the next attempt is at another instance
	}
	return f.Stage == e.stage && (f.Reached || f.Stale != nil)
}

// byReference reports whether an engine may have failed because it could not get an embedding
// that it got a reference to: it answers 500, or dies.
func (f *failure) byReference() bool {
	return f.brought.references && f.Reached && (f.Reason == telemetry.Broken || f.Lost || f.lacks())
}

// carry sets a member to what an engine answered for it. A client's own value could make engines
// read from any host.
func (g *generation) carry(name string, params []byte) body.Edit {
	if params == nil && g.h.TrustClients {
		params = g.in.body.Value(name)
	}
	return body.Set(name, params)
}
