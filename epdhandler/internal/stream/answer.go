package stream

import (
	"bytes"
	"errors"
	"net/http"
)

// maxAnswer bounds what is kept of an engine's answer. The largest are those of a prefill
// whose client wants the prompt or its tokens: about 10 MB for a million tokens.
const maxAnswer = 16 << 20

// smallAnswer is the size up to which an answer is not counted. Few are larger.
const smallAnswer = 32 << 10

// The reasons for which an answer is not taken.
var (
	ErrTooLarge   = errors.New("the answer is too large")
	ErrCompressed = errors.New("the stream is compressed, which it must not be: the request has Accept-Encoding: identity")
)

// Memory counts what is kept of an answer. Add waits until n bytes more may be taken, or fails.
type Memory interface{ Add(n int64) error }

// Answer is an http.ResponseWriter that keeps the answer in memory.
type Answer struct {
	Status  int         // 0: none yet
	Headers http.Header // nil: none yet
	Body    bytes.Buffer
	Err     error // why the answer was not taken, nil if it was

	Memory  Memory // nil: the answer is not counted
	counted int64
}

// Header implements http.ResponseWriter.
func (a *Answer) Header() http.Header {
	if a.Headers == nil {
		a.Headers = make(http.Header)
	}
	return a.Headers
}

// WriteHeader implements http.ResponseWriter. Informational answers are dropped.
func (a *Answer) WriteHeader(status int) {
	if a.Status == 0 && status >= 200 {
		a.Status = status
	}
}

// Write implements http.ResponseWriter.
func (a *Answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.Err == nil {
		a.Err = a.grow(int64(a.Body.Len() + len(p)))
	}
	if a.Err != nil {
		return 0, a.Err
	}
	return a.Body.Write(p)
}

// grow waits until there is memory for n bytes, and some more. It is not given back before
// the request ends, because parts of the answer are kept.
func (a *Answer) grow(n int64) error {
	if n > maxAnswer {
		return ErrTooLarge
	}
	if a.Memory == nil || n <= max(a.counted, smallAnswer) {
		return nil
	}
	more := 2*n - a.counted
	if err := a.Memory.Add(more); err != nil {
		return err
	}
	a.counted += more
	a.Body = *bytes.NewBuffer(append(make([]byte, 0, a.counted), a.Body.Bytes()...))
	return nil
}

// Deliver gives a client the whole answer, with the client's x-request-id.
func (a *Answer) Deliver(client http.ResponseWriter, requestID string) {
	writeHeader(client, requestID, a.Status, a.Headers)
	_, _ = client.Write(a.Body.Bytes())
}

func writeHeader(client http.ResponseWriter, requestID string, status int, header http.Header) {
	h := client.Header()
	delete(h, "Server") // as reverse_proxy does if its ResponseWriter is not wrapped
	for name, values := range header {
		h[name] = append(h[name], values...)
	}
	h["X-Request-Id"] = []string{requestID}
	client.WriteHeader(status)
}
