package fakevllm

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// errKilled is the cause by which requests of a killed engine differ from those of a client that went away.
var errKilled = errors.New("engine killed")

// life is one run of an engine's process, from its start to its kill.
type life struct {
	listener net.Listener
	server   *http.Server
	cancel   context.CancelCauseFunc
	served   chan struct{} // closed when the accept loop has ended

	mu    sync.Mutex // guards what follows
	over  bool
	conns map[net.Conn]struct{}
	empty sync.Cond // signals that conns has become empty
}

func newLife(listener net.Listener, idle time.Duration, handler http.Handler) *life {
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &life{
		listener: listener,
		cancel:   cancel,
		served:   make(chan struct{}),
		conns:    make(map[net.Conn]struct{}),
	}
	l.empty.L = &l.mu
	l.server = &http.Server{
		Handler:     handler,
		IdleTimeout: idle,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, connection{c, l})
		},
		ConnState: l.track,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go func() {
		defer close(l.served)
		_ = l.server.Serve(listener) // returns when the listener is closed
	}()
	return l
}

// track keeps the set of open connections, so that kill can reset them.
func (l *life) track(c net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch state {
	case http.StateNew:
		l.conns[c] = struct{}{}
		if l.over { // accepted while kill was closing the listener
			reset(c)
		}
	case http.StateClosed:
		delete(l.conns, c)
		if len(l.conns) == 0 {
			l.empty.Broadcast()
		}
	}
}

// kill does not wait for requests in service, because a request may call it.
func (l *life) kill() {
	if l.resetAll() {
		_ = l.server.Close() // not under mu: it waits for an accept loop that may be in track
	}
}

// resetAll reports false if the life has already ended.
func (l *life) resetAll() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.over = true
	l.cancel(errKilled) // before the reset, so that requests do not count it as a client that went away
	_ = l.listener.Close()
	for c := range l.conns {
		reset(c)
	}
	return true
}

// wait returns when all goroutines and connections of a killed life have ended.
func (l *life) wait() {
	<-l.served
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.conns) > 0 {
		l.empty.Wait()
	}
}

// connection lets a request find its own connection, to reset it. Conn is not
// embedded, as reset needs its concrete type.
type connection struct {
	conn net.Conn
	life *life
}

type connectionKey struct{}

func connectionOf(r *http.Request) connection {
	return r.Context().Value(connectionKey{}).(connection)
}

// reset closes a connection with RST instead of FIN, as the kernel does for a killed process.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed connection
	}
	_ = c.Close()
}
