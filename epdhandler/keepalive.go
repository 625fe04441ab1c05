package epdhandler

import (
	"net/http"
	"sync"
	"time"
)

// keepalive sends SSE comments to the client of a stream until decode answers.
// Whatever is between might take a connection that is silent for dead.
type keepalive struct {
	mu     sync.Mutex // held while anything is sent
	client http.ResponseWriter
	id     string // x-request-id for the client
	every  time.Duration
	timer  *time.Timer
	begun  bool // the client has the status 200
	over   bool
}

// keepAlive begins with the comments. end must be called before anything else is sent.
func keepAlive(client http.ResponseWriter, id string, every time.Duration) *keepalive {
	k := &keepalive{client: client, id: id, every: every}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(every, k.comment)
	return k
}

func (k *keepalive) comment() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		return
	}
	if !k.begun {
		k.begun = true
		h := k.client.Header()
		h.Set("Content-Type", eventStream)
		h.Set("Cache-Control", "no-cache")
		h["X-Request-Id"] = []string{k.id}
		k.client.WriteHeader(http.StatusOK)
	}
	_, err := k.client.Write([]byte(": keep-alive\n\n"))
	if err == nil {
		err = http.NewResponseController(k.client).Flush()
	}
	if err == nil {
		k.timer.Reset(k.every)
	}
}

// end ends the comments and reports whether there were any.
func (k *keepalive) end() (begun bool) {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
	k.timer.Stop()
	return k.begun
}
