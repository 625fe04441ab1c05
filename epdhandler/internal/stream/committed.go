package stream

import (
	"bytes"
	"cmp"
	"net/http"
	"strings"
)

// committed is the state of a Response whose status the client has.
type committed struct {
	response    *Response
	conn        *http.ResponseController // of the client
	status      int
	stream      bool
	usage       *usageEdit // nil: the usage is right
	tail        [16]byte   // the last bytes that the client has
	streamError int
	clientGone  bool
}

// Header returns the client's: what is set now are trailers.
func (c *committed) Header() http.Header { return c.response.config.Client.Header() }

func (c *committed) WriteHeader(int) {}

// Write never fails, because reverse_proxy would log that. A client that is gone ends the
// answer by Config.Stop.
func (c *committed) Write(p []byte) (int, error) {
	c.response.config.Silence.heard()
	if c.stream {
		c.streamError = cmp.Or(c.streamError, errorStatus(c.tail[:], p))
	}
	if c.usage != nil {
		c.usage.write(p, c.send)
	} else {
		c.send(p)
	}
	return len(p), nil
}

// send gives the client a piece of the answer.
func (c *committed) send(p []byte) {
	if c.clientGone {
		return
	}
	n, err := c.response.config.Client.Write(p)
	if err != nil {
		c.clientGone = true
		c.response.config.Stop()
		return
	}
	c.keepTail(p[:n])
}

func (c *committed) keepTail(p []byte) {
	n := len(p)
	if n < len(c.tail) {
		copy(c.tail[:], c.tail[n:])
	}
	copy(c.tail[max(0, len(c.tail)-n):], p[max(0, n-len(c.tail)):])
}

func (c *committed) FlushError() error { return c.conn.Flush() }

func (c *committed) end(e Ending) Result {
	c.usage.flush(c.send)
	done := c.stream && c.endsWithEvent("[DONE]")
	return Result{
		Status:      c.status,
		Stream:      c.stream,
		StreamError: c.streamError,
		Done:        done,
		Cut:         e == Cut || e == Unframed && c.stream && !done,
		ClientGone:  c.clientGone,
	}
}

// abort sends an error event. An event that was cut before it gets an end of its own.
func (c *committed) abort(object []byte) {
	if !c.stream {
		_ = c.FlushError()
		return
	}
	client := c.response.config.Client
	begun := c.tail != [len(c.tail)]byte{}
	if begun && !c.endsWithEvent("") {
		_, _ = client.Write([]byte("\n\n"))
	}
	WriteEvent(client, object)
}

// endsWithEvent reports whether the last event that the client has is complete, and ends
// with s.
func (c *committed) endsWithEvent(s string) bool {
	tail := string(c.tail[:])
	return strings.HasSuffix(tail, s+"\n\n") || strings.HasSuffix(tail, s+"\r\n\r\n")
}

// WriteEvent sends a JSON object as an event at once.
func WriteEvent(client http.ResponseWriter, object []byte) {
	event := append([]byte("data: "), bytes.TrimSpace(object)...)
	_, _ = client.Write(append(event, "\n\n"...))
	_ = http.NewResponseController(client).Flush()
}
