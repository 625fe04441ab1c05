package stream

import (
	"net/http"
	"sync"
	"time"
)

// Keepalive sends comments to the client of a stream until the engine answers, so that no proxy
// or firewall closes an idle connection. The first comment gives the client the status 200.
type Keepalive struct {
	mu        sync.Mutex // held while anything is sent
	client    http.ResponseWriter
	requestID string
	every     time.Duration
	timer     *time.Timer
	begun     bool // the client has the status
	ended     bool
}

// StartKeepalive sends the first comment after the time every. Nothing else may be sent
// before End is called.
func StartKeepalive(client http.ResponseWriter, requestID string, every time.Duration) *Keepalive {
	k := &Keepalive{client: client, requestID: requestID, every: every}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(every, k.comment)
	return k
}

func (k *Keepalive) comment() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return
	}
	if !k.begun {
		k.begun = true
		h := k.client.Header()
		h.Set("Content-Type", eventStream)
		h.Set("Cache-Control", "no-cache")
		h["X-Request-Id"] = []string{k.requestID}
		k.client.WriteHeader(http.StatusOK)
	}
	_, err := k.client.Write([]byte(": keep-alive\n\n"))
	if err == nil && http.NewResponseController(k.client).Flush() == nil {
		k.timer.Reset(k.every)
	}
}

// End ends the comments and reports whether there were any. A nil Keepalive has none.
func (k *Keepalive) End() (begun bool) {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.timer.Stop()
	return k.begun
}
