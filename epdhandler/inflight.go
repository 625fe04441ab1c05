package epdhandler

import (
	"sync"
	"time"
)

// inFlight are the ids of the requests that are being served by this process, also
// by handlers of a configuration that has been replaced. Engines mix up or crash
// on two requests at a time with one id.
var inFlight sync.Map

// idLinger is how long an id is still taken after a request that did not end well: an
// engine may notice a little later that nobody waits for it any more.
var idLinger = time.Second

// claimID returns the id that engines get for a request: the client's, or that with
// a fresh suffix if another request with it is still being served. release must be
// called when the request is over.
func claimID(id string) (engineID string, release func(endedWell bool)) {
	engineID = id
	for {
		if _, taken := inFlight.LoadOrStore(engineID, nil); !taken {
			return engineID, func(endedWell bool) {
				if endedWell {
					inFlight.Delete(engineID)
				} else {
					time.AfterFunc(idLinger, func() { inFlight.Delete(engineID) })
				}
			}
		}
		engineID = id + "-" + hex6()
	}
}
