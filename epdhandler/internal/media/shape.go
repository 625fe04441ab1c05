package media

import (
	"bytes"
	"encoding/json"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// flatten returns an encoder's metadata as a reference has them: lists of lists become
// lists. It returns nil if there are none, or anything in them is no number.
func flatten(metadata []byte) []byte {
	members, err := body.Entries(metadata)
	if err != nil || len(members) == 0 {
		return nil
	}
	for n, m := range members {
		d := json.NewDecoder(bytes.NewReader(m.Value))
		d.UseNumber()
		var value any
		if d.Decode(&value) != nil {
			return nil
		}
		if value = flattened(value); value == nil {
			return nil
		}
		members[n].Value, _ = json.Marshal(value) // numbers
	}
	return object(members)
}

// flattened returns a number as it is, and the numbers of a list, or of its lists, in one.
func flattened(value any) any {
	list, ok := value.([]any)
	if !ok {
		return number(value)
	}
	numbers := []any{}
	for _, v := range list {
		inner, ok := v.([]any)
		if !ok {
			inner = []any{v}
		}
		for _, n := range inner {
			if number(n) == nil {
				return nil
			}
			numbers = append(numbers, n)
		}
	}
	return numbers
}

func number(value any) any {
	if _, ok := value.(json.Number); !ok {
		return nil
	}
	return value
}
