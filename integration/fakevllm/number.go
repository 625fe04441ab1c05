package fakevllm

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// number reads a number as pydantic does, also from a string. In Python, true and false are numbers.
func number(raw json.RawMessage) (float64, bool) {
	text := string(raw)
	if s, isString := stringOf(raw); isString {
		text = strings.ReplaceAll(strings.TrimSpace(s), "_", "")
	} else if text == "true" {
		return 1, true
	} else if text == "false" {
		return 0, true
	}
	n, err := strconv.ParseFloat(text, 64)
	return n, err == nil || math.IsInf(n, 0)
}

// lax reads an integer as pydantic does; 0 if it is none.
func lax(raw json.RawMessage) int {
	n, _ := number(raw)
	return int(n)
}

// flags are the strings that pydantic accepts as false and true.
var flags = map[string]bool{
	"0": false, "off": false, "f": false, "false": false, "n": false, "no": false,
	"1": true, "on": true, "t": true, "true": true, "y": true, "yes": true,
}

// flag reads a boolean as pydantic does.
func flag(raw json.RawMessage) (on, ok bool) {
	if s, isString := stringOf(raw); isString {
		on, ok = flags[strings.ToLower(s)]
		return on, ok
	}
	n, ok := number(raw)
	return n == 1, ok && (n == 0 || n == 1)
}

func isTrue(raw json.RawMessage) bool {
	on, _ := flag(raw)
	return on
}
