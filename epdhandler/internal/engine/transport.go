package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// replayTransport gives every round trip its body anew, and repeats one, once and on a connection
// of its own, that met a connection which the engine had closed in the meantime: unless it brings
// what engines give only once, and the engine may have got it after all. net/http repeats a POST
// only if it can tell that nothing was sent, and reverse_proxy hides from it that the body can be
// read again. It also notes answers that end in their middle. Embedding keeps what else reverse_proxy
// asks of its transport: TLS, health checks, the PROXY protocol.
type replayTransport struct {
	*reverseproxy.HTTPTransport

	// fresh keeps no connections. Nil: all are HTTP/2 or 3, where net/http repeats what it can.
	fresh *http.Transport
}

func newReplayTransport(t *reverseproxy.HTTPTransport) replayTransport {
	r := replayTransport{HTTPTransport: t}
	if !slices.Contains(t.Versions, "h2c") && !slices.Contains(t.Versions, "3") {
		dialForBodies(t.Transport)
		r.fresh = t.Transport.Clone()
		r.fresh.DisableKeepAlives = true
	}
	return r
}

// staleWindow is how soon after the request was sent a connection must have ended to be taken for
// one that had ended before. Later, the engine may have worked on the request.
const staleWindow = 500 * time.Millisecond

// RoundTrip implements http.RoundTripper.
func (t replayTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	a := attemptOf(r)
	if a == nil { // a health check
		return t.HTTPTransport.RoundTrip(new(roundTrip).request(r, new(Attempt)))
	}
	if a.lookingUp || a.Stale != nil {
		return nil, context.Canceled // which reverse_proxy holds against nobody
	}
	start := time.Now()
	res, err := t.sendOnce(r, a)
	a.broke, a.Unframed, a.code = false, false, 0
	if err != nil {
		return res, err
	}
	a.code = res.StatusCode
	a.Unframed = res.ContentLength < 0 && res.TransferEncoding == nil && res.ProtoMajor == 1 && !res.Uncompressed
	if a.HasBody() { // a question that costs nothing would make the instance look fast
		a.Instance().Answered(time.Since(start))
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Body = answerBody{res.Body, a}
	}
	return res, nil
}

// sendOnce sends the call, and sends it again if it met the end of an idle connection.
func (t replayTransport) sendOnce(r *http.Request, a *Attempt) (*http.Response, error) {
	trip := new(roundTrip)
	res, err := t.send(trip.request(r, a), a.Alone)
	a.Reached = a.Reached || trip.connected.Load()
	if err == nil || t.fresh == nil || r.Context().Err() != nil {
		return res, err
	}
	stale, sure := trip.stale(err)
	if a.Lost = stale && !sure && a.Spends; !stale || a.Lost {
		return res, err
	}
	again := new(roundTrip).request(r, a)
	again.Header = again.Header.Clone()
	again.Header["X-Request-Id"] = []string{a.IDHead + RandomHex(6)} // should it know the other after all
	return t.send(again, true)
}

// send makes a round trip, if alone on a connection of its own.
func (t replayTransport) send(r *http.Request, alone bool) (*http.Response, error) {
	if alone && t.fresh != nil {
		t.SetScheme(r)
		return t.fresh.RoundTrip(r)
	}
	return t.HTTPTransport.RoundTrip(r)
}

// answerBody is the body of an engine's answer. If it breaks off, the call knows it, but not
// reverse_proxy, which would write a line of its own to the log, and panic.
type answerBody struct {
	io.ReadCloser
	attempt *Attempt
}

// Read implements io.Reader.
func (b answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.attempt.broke = true
		err = io.EOF
	}
	return n, err
}

// roundTrip observes a round trip. Goroutines of the transport set its fields, and can outlive it.
type roundTrip struct {
	connected, reused, answered atomic.Bool

	sent  atomic.Pointer[time.Time] // when the request was written, or writing it failed
	large bool                      // there is a body that is for a bodyConn
}

// request is r with the whole body of a to send, observed. What an engine may know already
// is not sent a second time.
func (t *roundTrip) request(r *http.Request, a *Attempt) *http.Request {
	if a.Reached && a.Renew != nil {
		a.Body = a.Renew()
	}
	a.Asked = time.Now()
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			t.connected.Store(true)
			t.reused.Store(i.Reused && !isHTTP2(i.Conn))
			if c, ok := i.Conn.(*bodyConn); ok {
				c.next = t.large
			}
		},
		WroteRequest: func(httptrace.WroteRequestInfo) {
			now := time.Now()
			t.sent.Store(&now)
		},
		GotFirstResponseByte: func() { t.answered.Store(true) },
	}))
	if a.Body != nil && r.Body != nil {
		r.GetBody = func() (io.ReadCloser, error) { return a.Body.Reader(), nil }
		r.Body, _ = r.GetBody()
		if r.Header["Expect"] == nil { // else net/http waits for an answer between header and body
			_, t.large = r.Body.(*body.Reader)
		}
		r.ContentLength = a.Body.Len()
	}
	if a.client != nil && r.URL.RawQuery == a.client.Request.URL.RawQuery { // unless the pool's options have changed it
		r.URL = &url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path, RawPath: r.URL.RawPath}
	}
	return r
}

// stale reports whether err is the end of an idle connection, found too late, and whether
// the engine surely has not got the request.
func (t *roundTrip) stale(err error) (stale, sure bool) {
	if !t.reused.Load() || t.answered.Load() {
		return false, false
	}
	if strings.Contains(err.Error(), "server closed idle connection") { // net/http is sure
		return true, true
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return false, false
	}
	sent := t.sent.Load()
	return sent == nil || time.Since(*sent) < staleWindow, sent == nil
}

func isHTTP2(c net.Conn) bool {
	t, ok := c.(*tls.Conn)
	return ok && t.ConnectionState().NegotiatedProtocol == "h2"
}

// bodyConn is a connection that takes a body as it is, together with the header before it. net/http
// would copy it through a buffer of 32 KiB; each write is a system call and wakes the engine.
type bodyConn struct {
	*net.TCPConn

	next bool   // a request comes whose body is a [body.Reader]: its header to Write, its body to ReadFrom
	head []byte // the header, which waits for the body
}

// Write implements io.Writer.
func (c *bodyConn) Write(p []byte) (int, error) {
	if c.next {
		c.next = false
		c.head = append(c.head, p...)
		return len(p), nil
	}
	if err := c.sendHead(); err != nil { // it was not all of the header
		return 0, err
	}
	return c.TCPConn.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (c *bodyConn) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if b, ok := limited.R.(*body.Reader); ok && b.Len() == limited.N {
			n, err := b.WriteAfter(c.head, c.TCPConn)
			limited.N -= n
			c.head = c.head[:0]
			return n, err
		}
	}
	if err := c.sendHead(); err != nil {
		return 0, err
	}
	return c.TCPConn.ReadFrom(r)
}

func (c *bodyConn) sendHead() error {
	if len(c.head) == 0 {
		return nil
	}
	_, err := c.TCPConn.Write(c.head)
	c.head = c.head[:0]
	return err
}

// dialForBodies makes a transport use a bodyConn where it would use a plain TCP connection.
func dialForBodies(t *http.Transport) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			return &bodyConn{TCPConn: tcp}, nil
		}
		return conn, err
	}
}
