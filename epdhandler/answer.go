package epdhandler

import (
	"bytes"
	"cmp"
	"errors"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// maxAnswer bounds what is kept of an engine's answer. The largest are those of a prefill
// whose client wants to see the prompt or its tokens: 10 MB or so for a million tokens.
const maxAnswer = 16 << 20

// smallAnswer is the size up to which an answer is not counted as memory that the request
// holds. Few have more.
const smallAnswer = 32 << 10

// Why an answer is not taken.
var (
	errAnswerTooLarge = errors.New("the answer is too large")
	errCompressed     = errors.New("the stream is compressed, which it must not be: the request has Accept-Encoding: identity")
)

// answer is an engine's answer, kept in memory. It is the http.ResponseWriter of
// a sub-request whose answer the client does not get to see as it is.
type answer struct {
	status  int // 0: none yet
	header  http.Header
	body    bytes.Buffer
	refused error // why it is not taken; nil if it is

	room    *memory.Share // of the request; nil: the answer is not counted
	counted int64
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header {
	if a.header == nil {
		a.header = make(http.Header)
	}
	return a.header
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.refused == nil {
		a.refused = a.grow(int64(a.body.Len() + len(p)))
	}
	if a.refused != nil {
		return 0, a.refused
	}
	return a.body.Write(p)
}

// grow waits until there is memory for n bytes, and some more. It is the request's until
// that ends, for parts of the answer are kept.
func (a *answer) grow(n int64) error {
	if n > maxAnswer {
		return errAnswerTooLarge
	}
	if a.room == nil || n <= max(a.counted, smallAnswer) {
		return nil
	}
	more := 2*n - a.counted
	if err := a.room.Add(more); err != nil {
		return err
	}
	a.counted += more
	a.body = *bytes.NewBuffer(append(make([]byte, 0, a.counted), a.body.Bytes()...))
	return nil
}

// response is the http.ResponseWriter of decode. It holds an answer back until
// its status is accepted, and the opening of a stream until that says something.
// From then on all goes to the client, as it comes.
type response struct {
	client http.ResponseWriter
	conn   *http.ResponseController // of client
	id     string                   // x-request-id for the client
	accept func(status int) bool    // whether the client gets an answer of this status
	plain  bool                     // the client wants a stream, and the engine was told not to compress it
	begins func()                   // called with each piece of a stream

	// correct returns what corrects the usage in an answer, nil if it is right.
	correct func(events bool) *usageEdit
	done    func() // called when an answer is accepted: there is no further attempt
	stop    func() // ends the answer of an engine that nobody reads any more

	held      answer   // what was not accepted
	opening   *opening // of a stream; nil if there is none, or it has begun
	pending   bool     // held has the status and header of an answer whose first byte has not come
	silence   *silence
	keepalive *keepalive
	committed bool // the client has the status
	stream    bool // of server-sent events, not compressed by the engine
	usage     *usageEdit
	end       [16]byte // of what the client has
	status    int      // that it has
	failure   int      // status of an error that the engine put into the stream
	gone      bool     // writing to the client failed
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header {
	if w.committed {
		return w.client.Header()
	}
	return w.held.Header()
}

// WriteHeader implements http.ResponseWriter. Informational answers are not
// passed on: the client hears nothing before decode has answered.
func (w *response) WriteHeader(status int) {
	switch {
	case w.committed || status < 200:
	case status == http.StatusOK && isStream(w.held.header):
		w.held.WriteHeader(status)
		w.opening = new(opening)
	case status == http.StatusOK && w.plain && isEvents(w.held.header):
		w.held.WriteHeader(status)
		w.held.refused = errCompressed
	case !w.accept(status) || w.keepalive.end():
		w.held.WriteHeader(status)
	default:
		w.held.WriteHeader(status)
		w.pending = true
	}
}

// whole gives the client the status and header of an answer that has not been cut before
// its first byte.
func (w *response) whole() {
	if w.pending {
		w.pending = false
		w.commit(w.held.status, w.held.header)
	}
}

// commit gives the client the status and the header.
func (w *response) commit(status int, header http.Header) {
	w.committed, w.status = true, status
	w.done()
	w.stream = isStream(header)
	if status == http.StatusOK && w.correct != nil && isIdentity(header.Get("Content-Encoding")) {
		w.usage = w.correct(w.stream)
	}
	if w.keepalive.end() {
		return // it has them
	}
	h := w.client.Header()
	delete(h, "Server") // as reverse_proxy does where it is not wrapped
	for name, values := range header {
		h[name] = append(h[name], values...)
	}
	h["X-Request-Id"] = []string{w.id}
	w.client.WriteHeader(status)
}

const eventStream = "text/event-stream"

// isEvents reports whether an answer is a stream of events.
func isEvents(header http.Header) bool {
	typ, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	return typ == eventStream
}

// isStream reports whether an answer is a stream of events that is not compressed.
func isStream(header http.Header) bool {
	return isEvents(header) && isIdentity(header.Get("Content-Encoding"))
}

// isIdentity reports whether a Content-Encoding is none.
func isIdentity(encoding string) bool {
	return encoding == "" || strings.EqualFold(encoding, "identity")
}

// deliver gives the client an answer that was held back.
func (w *response) deliver(a *answer) {
	w.commit(a.status, a.header)
	_, _ = w.client.Write(a.body.Bytes())
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	if w.opening != nil {
		w.open(p)
		return len(p), nil
	}
	w.whole()
	if !w.committed {
		return w.held.Write(p)
	}
	w.silence.heard()
	if w.stream {
		w.begins()
		w.failure = cmp.Or(w.failure, failureIn(w.end[:], p))
	}
	if w.usage != nil {
		w.usage.write(p, w.put)
	} else {
		w.put(p)
	}
	return len(p), nil // else reverse_proxy would write a line of its own to the log
}

// put gives the client a piece of the answer.
func (w *response) put(p []byte) {
	if w.gone {
		return
	}
	n, err := w.client.Write(p)
	if err != nil {
		w.gone = true
		w.stop()
		return
	}
	w.keepEnd(p[:n])
}

// keepEnd keeps the end of what the client has.
func (w *response) keepEnd(p []byte) {
	n := len(p)
	if n < len(w.end) {
		copy(w.end[:], w.end[n:])
	}
	copy(w.end[max(0, len(w.end)-n):], p[max(0, n-len(w.end)):])
}

// lastWords is how long an engine may go on after an error that is its whole answer.
const lastWords = time.Second

// open takes a piece of the opening.
func (w *response) open(p []byte) {
	o, failed, said := w.opening, w.opening.failed, w.opening.said
	switch begun := o.add(p); {
	case begun:
		w.begin()
	case o.failed != failed:
		w.silence.run(limit{time: lastWords})
	case o.said > said: // a comment says nothing of the request
		w.silence.heard()
	}
}

// begin gives the client the opening that was held back.
func (w *response) begin() {
	o := w.opening
	w.opening = nil
	w.commit(http.StatusOK, w.held.header)
	_, _ = w.Write(o.events) // never fails: see there
}

// close ends the opening of a stream that has not begun. If it is an error, that becomes
// an answer with the status that it should have had, and close reports true. What
// came after it does not matter, nor how that ended.
func (w *response) close(cut bool) (failed bool) {
	defer func() { w.usage.flush(w.put) }()
	if !cut {
		w.whole()
	}
	o := w.opening
	if o == nil {
		return false
	}
	if !cut {
		o.end()
	}
	if o.failed != nil {
		w.held, w.opening = *o.failed, nil
		return true
	}
	if !cut {
		w.begin()
	}
	return false
}

// endEvent sets what follows in a stream apart from an event that may have been cut.
func (w *response) endEvent() {
	begun := w.end != [len(w.end)]byte{}
	if begun && !w.endsIn("") {
		_, _ = w.client.Write([]byte("\n\n"))
	}
}

// ended reports whether the client has the last event of a stream. Some clients hang
// up then, before the engine's answer ends, and lack nothing.
func (w *response) ended() bool { return w.stream && w.endsIn("[DONE]") }

// endsIn reports whether the client has an event to its end, and that this is it.
func (w *response) endsIn(s string) bool {
	end := string(w.end[:])
	return strings.HasSuffix(end, s+"\n\n") || strings.HasSuffix(end, s+"\r\n\r\n")
}

// FlushError implements the Flush of http.ResponseController.
func (w *response) FlushError() error {
	if !w.committed {
		return nil
	}
	return w.conn.Flush()
}
