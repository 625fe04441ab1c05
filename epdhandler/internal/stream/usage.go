package stream

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// usageEdit corrects usage.prompt_tokens_details.cached_tokens in what decode says after a
// prefill. For decode, all that prefill has handed over is cached, which is the prompt but for
// one token; what counts, and is cheaper, is what prefill had cached. If that is not known, or
// has more digits, the number is left out. (vLLM corrects it itself since 0.31.0.)
//
// All else passes through byte for byte, and spaces keep the length of the answer. Only the
// usage is held back while it is not complete.
type usageEdit struct {
	cached int  // tokens; -1: not known
	events bool // the answer is a stream of events, each of which is one line with an object

	depth   int    // of objects and lists
	inText  bool   // in a string
	escaped bool   // behind a backslash
	last    uint64 // the last eight bytes, without spaces between tokens
	holding bool
	held    []byte // the beginning of the usage
}

// maxHeld bounds what is held back. It is far more than usage has.
const maxHeld = 1 << 10

// usageName is what last is before the value of usage.
var usageName = binary.BigEndian.Uint64([]byte(`"usage":`))

func (e *usageEdit) write(p []byte, to func([]byte)) {
	// nearly all pieces are events without details of the prompt, and need not be looked at byte by byte
	if e.events && e.depth == 0 && !e.inText && bytes.HasSuffix(p, []byte("\n")) && !bytes.Contains(p, []byte("prompt_tokens_details")) {
		to(p)
		return
	}
	begin := 0 // of what is to be passed on
	for i := 0; i < len(p); i++ {
		if e.inText && !e.escaped {
			i += e.skip(p[i:])
		}
		held := e.holding
		e.step(p[i])
		switch {
		case !held && e.holding:
			to(p[begin:i])
			begin = i
		case held && !e.holding:
			e.held = append(e.held, p[begin:i+1]...)
			e.edit(e.held)
			e.flush(to)
			begin = i + 1
		}
	}
	if e.holding {
		e.held = append(e.held, p[begin:]...)
		if len(e.held) > maxHeld {
			e.flush(to)
		}
	} else if begin < len(p) {
		to(p[begin:])
	}
}

// skip returns how many bytes of a text come before one that may end it. It never skips the last one.
func (e *usageEdit) skip(p []byte) int {
	for i, c := range p {
		if c == '"' || c == '\\' || c == '\n' || i == len(p)-1 {
			return i
		}
		e.last = e.last<<8 | uint64(c)
	}
	return 0
}

func (e *usageEdit) flush(to func([]byte)) {
	if e != nil && len(e.held) > 0 {
		to(e.held)
		e.holding, e.held = false, e.held[:0]
	}
}

// step follows the structure of the answer, and decides what is held back.
func (e *usageEdit) step(c byte) {
	switch {
	case c == '\n' && e.events:
		*e = usageEdit{cached: e.cached, events: true, held: e.held}
		return
	case e.escaped:
		e.escaped, c = false, 0 // a quote here does not end a name
	case c == '"':
		e.inText = !e.inText
	case e.inText:
		e.escaped = c == '\\'
	case c == '{' || c == '[':
		e.holding = e.holding || c == '{' && e.depth == 1 && e.last == usageName
		e.depth++
	case c == '}' || c == ']':
		e.depth--
		e.holding = e.holding && e.depth > 1
	case c == ' ' || c == '\t' || c == '\r' || c == '\n':
		return
	}
	e.last = e.last<<8 | uint64(c)
}

// edit corrects the number in the usage. What is not valid, or too large, stays as it is.
func (e *usageEdit) edit(usage []byte) {
	if len(usage) > maxHeld {
		return
	}
	members, _ := body.MembersOf(usage)
	i := slices.IndexFunc(members, isNamed("prompt_tokens_details"))
	if i < 0 {
		return
	}
	details, _ := body.MembersOf(members[i].Value)
	i = slices.IndexFunc(details, isNamed("cached_tokens"))
	if i < 0 || !body.Given(details[i].Value) {
		return
	}
	number := details[i]
	text, old := strconv.Itoa(e.cached), number.Value
	if e.cached < 0 || len(text) > len(old) {
		end := func(part []byte) []byte { return part[len(part):] }
		from, to := number.Name, end(number.Value)
		if i+1 < len(details) {
			to = details[i+1].Name
		} else if i > 0 {
			from = end(details[i-1].Value)
		}
		old = from[:cap(from)-cap(to)] // the capacity of every part reaches to the same end
		text = ""
	}
	copy(old, text+strings.Repeat(" ", len(old)))
}

func isNamed(name string) func(body.Entry) bool {
	return func(e body.Entry) bool { return body.IsString(e.Name, name) }
}
