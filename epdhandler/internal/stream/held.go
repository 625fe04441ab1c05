package stream

import "net/http"

// held is the state of a Response of which the client has nothing, and that has no stream.
type held struct {
	response *Response
	answer   Answer
	accepted bool // the client gets the answer with its first byte, or its end
}

func (h *held) Header() http.Header { return h.answer.Header() }

func (h *held) WriteHeader(status int) {
	if status < 200 || h.answer.Status != 0 {
		return
	}
	h.answer.WriteHeader(status)
	config := &h.response.config
	switch {
	case status == http.StatusOK && isStream(h.answer.Headers):
		h.response.state = &opening{response: h.response, answer: &h.answer}
	case status == http.StatusOK && config.Streamed && isEvents(h.answer.Headers):
		h.answer.Err = ErrCompressed
	case config.Accept(status):
		// a client that has had a comment has the status and type of a stream
		h.accepted = !config.Keepalive.End()
	}
}

// Write keeps what is not accepted: it may be passed on later, when all attempts have failed.
func (h *held) Write(p []byte) (int, error) {
	if h.accepted {
		return h.commit().Write(p)
	}
	return h.answer.Write(p)
}

func (h *held) commit() *committed {
	return h.response.commit(h.answer.Status, h.answer.Headers)
}

func (h *held) FlushError() error { return nil }

func (h *held) end(e Ending) Result {
	if h.accepted && e != Cut {
		return h.commit().end(Complete)
	}
	return Result{Held: &h.answer}
}
