package engine

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
)

// Call is what a stage asks of its pool in one attempt.
type Call struct {
	Method, Path string
	ID           string         // x-request-id
	IDHead       string         // what the ids of repetitions begin with
	Body         *body.Segments // nil: none

	// Renew makes the body for a repetition after an engine may have seen the one before. Nil: the
	// same may be sent again.
	Renew func() *body.Segments

	Encoding []string       // Accept-Encoding; nil: the transport asks for gzip itself, and undoes it
	Skip     []string       // instances not to choose
	Turn     *dispatch.Turn // in the queue of the pool; nil: the call takes no slot
	Patience time.Duration  // how long it may wait for a slot, where that is more than queue_timeout
	Clock    Clock          // of its time limit
	Reserved *Reservation   // the only instance that it may go to; nil: any
	Spends   bool           // it brings what engines give only once
	Alone    bool           // it gets a connection of its own
	Number   int            // of the attempt in its stage, from 1
	Items    []int          // the media items that it is about, in encode

	// Ready is asked when there is a slot for the call, and may replace its body. False gives the
	// slot back, and ends the call as [Attempt.Stale]. Nil: it is ready.
	Ready func(*body.Segments) (*body.Segments, bool)
}

// Clock limits how long an engine takes. It stops while the call waits for a slot.
type Clock interface {
	dispatch.Clock

	// Expired is the error of the limit that has passed.
	Expired() error
}

// Reservation is an instance that was chosen for a call before the call is made. It must be
// released.
type Reservation struct {
	Address string
	Control string // the address that embeddings are pushed to
	Rank    string // for X-Data-Parallel-Rank; empty if there is only one

	slot *dispatch.Slot
}

// Release lets go of the instance. It may be called more than once, and on nil.
func (r *Reservation) Release() {
	if r != nil {
		r.slot.Release()
	}
}

// ControlAddress is the address that embeddings are pushed to; empty on nil.
func (r *Reservation) ControlAddress() string {
	if r == nil {
		return ""
	}
	return r.Control
}

// RandomHex returns n random hexadecimal digits, 16 at most. They tell requests and attempts apart;
// they are no secret.
func RandomHex(n int) string { return fmt.Sprintf("%016x", rand.Uint64())[:n] }
