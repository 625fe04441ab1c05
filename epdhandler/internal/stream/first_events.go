package stream

import "bytes"

// maxOpening bounds what is held back of a stream. Its first events are far smaller,
// unless they have what a client asked for, such as the log probabilities of a prompt.
const maxOpening = 64 << 10

// firstEvents are the events of a stream that are held back while they have no content. vLLM
// gives a stream the status 200 before it works on the request. If that fails, the first event is
// the error; or, in a chat, the second one, after an event with the role.
type firstEvents struct {
	bytes    []byte  // all that has come
	complete int     // how many events are complete
	failed   *Answer // what the engine would have answered if it were no stream

	line    int    // where the line begins that is not complete
	scanned int    // there is no end of a line between line and here
	data    []byte // of the event that is not complete
	cr      bool   // the last line ended with CR; LF may follow
}

// add takes a piece of the stream, and reports whether the stream has begun: there is
// content, or no more can be held back.
func (f *firstEvents) add(p []byte) (begun bool) {
	if f.failed != nil {
		return false
	}
	f.bytes = append(f.bytes, p...)
	for {
		data, ok := f.next()
		if !ok {
			return len(f.bytes) > maxOpening
		}
		f.complete++
		if f.failed = errorAnswer(data); f.failed != nil {
			return false
		}
		if !isEmpty(data) {
			return true
		}
	}
}

// end makes an event without an end complete, as the stream has ended.
func (f *firstEvents) end() {
	n := len(f.bytes)
	f.add([]byte("\n\n"))
	f.bytes = f.bytes[:n]
}

func (f *firstEvents) next() (data []byte, ok bool) {
	for {
		line, ok := f.nextLine()
		if !ok {
			return nil, false
		}
		if len(line) == 0 && f.data != nil {
			data, f.data = bytes.TrimSuffix(f.data, []byte("\n")), nil
			return data, true
		}
		if value, isData := bytes.CutPrefix(line, []byte("data:")); isData {
			f.data = append(append(f.data, bytes.TrimPrefix(value, []byte(" "))...), '\n')
		}
	}
}

// nextLine returns the next complete line. It ends with LF, CR, or both.
func (f *firstEvents) nextLine() (line []byte, ok bool) {
	if f.cr && f.line < len(f.bytes) {
		if f.cr = false; f.bytes[f.line] == '\n' {
			f.line++
		}
	}
	f.scanned = max(f.scanned, f.line)
	n := bytes.IndexAny(f.bytes[f.scanned:], "\r\n")
	if n < 0 {
		f.scanned = len(f.bytes)
		return nil, false
	}
	end := f.scanned + n
	line = f.bytes[f.line:end]
	if f.line == 0 {
		line = bytes.TrimPrefix(line, []byte("\ufeff"))
	}
	f.line, f.cr = end+1, f.bytes[end] == '\r'
	return line, true
}
