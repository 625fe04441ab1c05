package stream

import (
	"bytes"
	"strconv"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// usageEdit corrects how many tokens of the prompt were cached, in what decode says after a
// prefill: usage.prompt_tokens_details.cached_tokens. For decode, all that prefill has
// handed over is cached, which is the prompt but for one token; what counts, and is
// cheaper, is what prefill had cached. If that is not known, or has more digits, the number
// is left out. (vLLM 0.32 corrects it itself.)
//
// All else passes through as it comes, byte for byte. The answer keeps its length, because
// spaces stand in for what is taken out. An answer that the engine compresses, which vLLM
// does not, stays as it is. Only the object with the number is held back, while
// it is not complete.
type usageEdit struct {
	cached int  // tokens; -1: not known
	events bool // the answer is a stream of events, each of which is an object

	line    int    // of events: how much of dataPrefix the line has, -1: it is another line
	depth   int    // of objects and lists
	on      int    // how many names of usagePath the objects around have
	inText  bool   // in a string
	escaped bool   // behind a backslash
	isName  bool   // the string is a name that may be on the path
	name    []byte // the string, if it may be a name; as much as matters
	wanted  bool   // the next value is that of the next name on the path
	holding bool
	held    []byte // the beginning of the object, from pieces before
}

var usagePath = []string{"usage", "prompt_tokens_details"}

const (
	dataPrefix = "data:"
	maxHeld    = 512 // far more than the object has
)

// write passes a piece of the answer on.
func (e *usageEdit) write(p []byte, to func([]byte)) {
	if e.passes(p) {
		to(p)
		return
	}
	kept := 0 // from where on p has not been passed on
	for i := 0; i < len(p); i++ {
		if e.inText || e.events && e.line < 0 {
			i += e.skip(p[i:])
			if i == len(p) {
				break
			}
		}
		held := e.holding
		e.step(p[i])
		switch {
		case !held && e.holding:
			to(p[kept:i])
			kept = i
		case held && !e.holding:
			to(e.edit(append(e.held, p[kept:i+1]...)))
			e.held, kept = e.held[:0], i+1
		}
	}
	if e.holding {
		e.held = append(e.held, p[kept:]...)
		kept = len(p)
		if len(e.held) > maxHeld {
			e.flush(to)
		}
	}
	if kept < len(p) {
		to(p[kept:])
	}
}

// passes reports whether a piece consists of events that say nothing of the prompt. Nearly
// all do, and need not be looked at byte by byte.
func (e *usageEdit) passes(p []byte) bool {
	return e.events && e.line == 0 && bytes.HasSuffix(p, []byte("\n")) && !bytes.Contains(p, []byte(usagePath[1]))
}

// flush passes on what is held back.
func (e *usageEdit) flush(to func([]byte)) {
	if e != nil && len(e.held) > 0 {
		to(e.held)
		e.holding, e.held = false, nil
	}
}

// skip returns how many bytes mean nothing: within a string, or a line that is no data.
func (e *usageEdit) skip(p []byte) int {
	if e.escaped {
		return 0
	}
	n := 0
	for n < len(p) && p[n] != '\n' && (e.line < 0 || p[n] != '"' && p[n] != '\\') {
		n++
	}
	if e.isName && len(e.name) <= len(usagePath[1]) {
		e.name = append(e.name, p[:min(n, 2*len(usagePath[1]))]...)
	}
	return n
}

// step takes the next byte that means something.
func (e *usageEdit) step(c byte) {
	switch {
	case e.events && c == '\n':
		held := e.held
		*e = usageEdit{cached: e.cached, events: true, name: e.name[:0], held: held}
	case e.events && e.line < len(dataPrefix):
		if e.line >= 0 && c == dataPrefix[e.line] {
			e.line++
		} else {
			e.line = -1
		}
	case e.escaped:
		e.escaped = false
	case e.inText && c == '\\':
		e.escaped, e.isName = true, false // vLLM escapes nothing in these names
	case e.inText:
		e.inText = c != '"'
	default:
		e.structure(c)
	}
}

// structure takes a byte outside of strings.
func (e *usageEdit) structure(c byte) {
	switch c {
	case ' ', '\t', '\r', '\n':
		return
	case '"':
		e.inText, e.name = true, e.name[:0]
	case ':':
		e.wanted = e.isName && string(e.name) == usagePath[e.on]
		e.isName = false
		return
	case '{', '[':
		if c == '{' && e.wanted && e.on < len(usagePath) {
			if e.on++; e.on == len(usagePath) {
				e.holding = true
			}
		}
		e.depth++
		e.isName = c == '{' && e.depth == e.on+1 && !e.holding
	case '}', ']':
		if e.depth--; e.on > 0 && e.depth == e.on {
			e.on--
			e.holding = false
		}
		e.isName = false
	case ',':
		e.isName = e.depth == e.on+1 && !e.holding
	}
	e.wanted = false
}

// edit corrects the object that has the number, which keeps its length.
func (e *usageEdit) edit(object []byte) []byte {
	entries, err := body.MembersOf(object)
	if err != nil || len(object) > maxHeld {
		return object
	}
	begin := func(part []byte) int { return cap(object) - cap(part) } // it is a part of the object
	for i, entry := range entries {
		if !body.IsString(entry.Name, "cached_tokens") || !body.Given(entry.Value) {
			continue
		}
		from, to := begin(entry.Value), begin(entry.Value)+len(entry.Value)
		number := strconv.Itoa(e.cached)
		if e.cached < 0 || len(number) > to-from {
			from, number = begin(entry.Name), ""
			if i+1 < len(entries) {
				to = begin(entries[i+1].Name)
			} else if i > 0 {
				from = begin(entries[i-1].Value) + len(entries[i-1].Value)
			}
		}
		edited := bytes.Clone(object)
		copy(edited[from:to], bytes.Repeat([]byte(" "), to-from))
		copy(edited[from:], number)
		return edited
	}
	return object
}
