package fakevllm

import (
	"bytes"
	"encoding/json"
)

// split cuts a valid JSON list into its elements, or a valid JSON object into
// alternating names and values. encoding/json would scan megabytes of media
// several times at every level; this searches most bytes once, for the next quote.
func split(raw []byte) []json.RawMessage {
	var parts []json.RawMessage
	depth, from := 0, 1
	add := func(to int) {
		parts = append(parts, bytes.TrimSpace(raw[from:to]))
		from = to + 1
	}
	for at := 0; at < len(raw); at++ {
		switch raw[at] {
		case '"':
			at = closingQuote(raw, at)
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',', ':':
			if depth == 1 {
				add(at)
			}
		}
	}
	if last := len(raw) - 1; len(parts) > 0 || len(bytes.TrimSpace(raw[1:last])) > 0 {
		add(last)
	}
	return parts
}

// closingQuote returns the index at which the string ends that begins at the index.
func closingQuote(raw []byte, at int) int {
	for {
		at++
		at += bytes.IndexByte(raw[at:], '"')
		backslashes := 0
		for raw[at-1-backslashes] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			return at
		}
	}
}
