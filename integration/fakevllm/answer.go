package fakevllm

import (
	"bytes"
	"maps"
	"net/http"
	"strconv"
)

// answer is a response, as the pieces that are written one after the other.
type answer struct {
	status int
	header http.Header
	pieces [][]byte
}

// jsonAnswer is written in one piece, with a Content-Length.
func jsonAnswer(status int, body []byte) *answer {
	header := http.Header{}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return &answer{status, header, [][]byte{body}}
}

func (e *apiError) answer() *answer { return jsonAnswer(e.code, marshal(e.body)) }

// firstHalf is what is sent before a connection is cut. The pieces of a stream end within
// events; the first few of them are sent.
func (a *answer) firstHalf() *answer {
	half := *a
	if len(a.pieces) == 1 {
		body := a.pieces[0]
		half.pieces = [][]byte{body[:len(body)/2]}
	} else {
		half.pieces = a.pieces[:min(5, len(a.pieces)/2)]
	}
	return &half
}

// firstEvents is firstHalf of a stream without its last, incomplete event.
func (a *answer) firstEvents() *answer {
	half := a.firstHalf()
	sent := bytes.Join(half.pieces, nil)
	half.pieces = [][]byte{sent[:bytes.LastIndex(sent, []byte("\n\n"))+2]}
	return half
}

// send writes and flushes each piece separately.
func (x *exchange) send(a *answer) error {
	if x.cut != nil {
		a = x.cut(a)
	}
	if x.within != nil {
		a = a.firstEvents()
		a.pieces = append(a.pieces, event(marshal(x.within.body)), event([]byte("[DONE]")))
	}
	x.writeHead(a)
	for n, piece := range a.pieces {
		if err := x.sendPiece(piece, n < atOnce, n == len(a.pieces)-1); err != nil {
			return err
		}
	}
	if x.cut != nil {
		return errCut
	}
	return nil
}

func (x *exchange) writeHead(a *answer) {
	maps.Copy(x.w.Header(), a.header)
	x.w.WriteHeader(a.status)
}

// atOnce is the number of pieces of a stream that are sent without a delay: vLLM sends the
// role together with the first token.
const atOnce = 3

func (x *exchange) sendPiece(piece []byte, early, last bool) error {
	wait := x.engine.options.ChunkDelay
	if early {
		wait = 0
	}
	if err := pause(x.context(), wait); err != nil {
		return err
	}
	if last {
		x.end()
	}
	x.started = true
	if _, err := x.w.Write(piece); err != nil {
		return err
	}
	return http.NewResponseController(x.w).Flush()
}
