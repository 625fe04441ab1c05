package epdhandler

import "sync"

// inFlight are the ids of the requests that are being served by this process, also
// by handlers of a configuration that has been replaced. Engines mix up or crash
// on two requests at a time with one id.
var inFlight sync.Map

// claimID returns the id that engines get for a request: the client's, or that with
// a fresh suffix if another request with it is still being served. release must be
// called when the request is over.
func claimID(id string) (engineID string, release func()) {
	engineID = id
	for {
		if _, taken := inFlight.LoadOrStore(engineID, nil); !taken {
			return engineID, func() { inFlight.Delete(engineID) }
		}
		engineID = id + "-" + hex6()
	}
}
