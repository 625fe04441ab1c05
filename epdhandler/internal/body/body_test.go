package body

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseAccepts(t *testing.T) {
	for name, in := range map[string]string{
		"empty object":           `{}`,
		"space around":           " \t\r\n{ \"a\" : 1 } \n",
		"all kinds of values":    `{"a":[1,-0.5e+10,0,true,false,null,"x",{}],"b":{"c":[[]]}}`,
		"every escape":           `{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDC4B"}`,
		"half a surrogate pair":  `{"a":"\ud800"}`,
		"different halves":       `{"\ud800":1,"\ud801":2}`,
		"multibyte":              `{"größe":"你好 👋🏽"}`,
		"DEL":                    "{\"a\":\"\x7f\"}",
		"duplicates further in":  `{"a":{"b":1,"b":2}}`,
		"nested as deep as may":  `{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + `}`,
		"names that differ":      `{"Model":1,"model":2,"MODEL":3}`,
		"more names than a list": manyNames(100),
		"byte order mark":        "\ufeff {}",
		"longest integers":       `{"a":` + strings.Repeat("1", 4300) + `,"b":-` + strings.Repeat("9", 4300) + `}`,
		"longer, but no integer": `{"a":[` + strings.Repeat("1", 5000) + `.0,0.` + strings.Repeat("1", 5000) + `,1e` + strings.Repeat("0", 5000) + `1,` + strings.Repeat("1", 5000) + `E1]}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(in))
			require.NoError(t, err)
			assert.True(t, json.Valid([]byte(strings.TrimPrefix(in, "\ufeff"))), "the test itself is wrong")
		})
	}
}

// What is made of a body has no byte order mark, whatever is changed.
func TestByteOrderMarkIsLeftOut(t *testing.T) {
	for _, edits := range [][]Edit{nil, {Set("stream", "false")}, {Remove("model")}, {Set("max_tokens", "1"), Remove("stream")}} {
		b, err := Parse([]byte("\ufeff" + ` {"model":"m","stream":true} `))
		require.NoError(t, err)
		assert.Equal(t, "{", string(b.Rewrite(edits...).Bytes()[:1]))
		assert.Equal(t, "true", string(b.Value("stream")))
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"nothing":               {"", "the body is empty"},
		"only space":            {" \n", "the body is empty"},
		"text":                  {"hello", "not valid JSON: unexpected character at byte 0"},
		"byte order mark alone": {"\ufeff", "the body is empty"},
		"two byte order marks":  {"\ufeff\ufeff{}", "unexpected character at byte 3"},
		"space before the mark": {" \ufeff{}", "unexpected character at byte 1"},
		"mark in two":           {"\xef\xbb", "unexpected character at byte 0"},
		"UTF-16":                {"{\x00}\x00", "not in UTF-8, but in UTF-16 or UTF-32"},
		"UTF-16, big":           {"\x00{\x00}", "not in UTF-8"},
		"UTF-16 with a mark":    {"\xff\xfe{\x00}\x00", "not in UTF-8"},
		"UTF-16, big, a mark":   {"\xfe\xff\x00{\x00}", "not in UTF-8"},
		"UTF-32":                {"{\x00\x00\x00}\x00\x00\x00", "not in UTF-8"},
		"UTF-32, big, a mark":   {"\x00\x00\xfe\xff\x00\x00\x00{\x00\x00\x00}", "not in UTF-8"},
		"integer too long":      {`{"a":` + strings.Repeat("1", 4301) + `}`, "the integer at byte 5 has more than 4300 digits"},
		"negative, too long":    {`{"a":{"b":[0,-` + strings.Repeat("1", 4301) + `]}}`, "the integer at byte 13 has more than 4300 digits"},
		"too long, at the end":  {`{"a":` + strings.Repeat("1", 4301), "the integer at byte 5 has more than 4300 digits"},
		"zeros":                 {`{"a":00}`, "expected ',' or '}'"},
		"list":                  {"[]", "must be a JSON object"},
		"number":                {"1", "must be a JSON object"},
		"list with a tail":      {"[] x", "unexpected data after the object"},
		"trailing bytes":        {"{} x", "unexpected data after the object at byte 3"},
		"two documents":         {"{}{}", "unexpected data after the object at byte 2"},
		"zero byte behind":      {"{}\x00", "unexpected data after the object"},
		"ends in an object":     {`{"a":1`, "it ends early, at byte 6"},
		"ends in a name":        {`{"a`, "it ends early"},
		"ends in a string":      {`{"a":"x`, "it ends early"},
		"ends in an escape":     {`{"a":"\`, "it ends early"},
		"ends in \\u":           {`{"a":"\u00`, "it ends early"},
		"ends in a list":        {`{"a":[1,`, "it ends early"},
		"ends in a literal":     {`{"a":tru`, "not valid JSON"},
		"trailing comma":        {`{"a":1,}`, "expected the name of a member at byte 7"},
		"trailing comma, list":  {`{"a":[1,]}`, "unexpected character at byte 8"},
		"no colon":              {`{"a" 1}`, "expected ':'"},
		"no comma":              {`{"a":1 "b":2}`, "expected ',' or '}'"},
		"no comma, list":        {`{"a":[1 2]}`, "expected ',' or ']'"},
		"bare name":             {`{a:1}`, "expected the name of a member"},
		"leading zero":          {`{"a":01}`, "expected ',' or '}'"},
		"plus":                  {`{"a":+1}`, "unexpected character"},
		"lone minus":            {`{"a":-}`, "malformed number"},
		"no fraction":           {`{"a":1.}`, "malformed number"},
		"no exponent":           {`{"a":1e}`, "malformed number"},
		"NaN":                   {`{"a":NaN}`, "unexpected character"},
		"bad literal":           {`{"a":trux}`, "unexpected literal"},
		"control character":     {"{\"a\":\"x\ny\"}", "control character in a string at byte 7"},
		"bad escape":            {`{"a":"\x41"}`, "invalid escape in a string"},
		"bad hexadecimal":       {`{"a":"\u00g0"}`, "invalid escape in a string"},
		"invalid UTF-8":         {"{\"a\":\"\xff\"}", "invalid UTF-8 at byte 6"},
		"overlong UTF-8":        {"{\"a\":\"\xc0\x80\"}", "invalid UTF-8"},
		"surrogate as UTF-8":    {"{\"a\":\"\xed\xa0\x80\"}", "invalid UTF-8"},
		"duplicate":             {`{"model":"a","model":"b"}`, "the member 'model' at byte 13 is given twice"},
		"duplicate, escaped":    {`{"model":"a","m\u006fdel":"b"}`, "the member 'model' at byte 13 is given twice"},
		"duplicate, surrogates": {`{"\ud83d\ude00":1,"😀":2}`, "given twice"},
		"duplicate, secret":     {`{"What I Think":1,"What I Think":2}`, "the member at byte 18 is given twice"},
		"duplicate of many":     {strings.TrimSuffix(manyNames(100), "}") + `,"n7":1}`, "given twice"},
		"members without end":   {manyNames(2000), "an object has more than 1000 members"},
		"duplicate in xargs":    {`{"vllm_xargs":{"a":1,"a":2,"kv_transfer_params":"x"}}`, "the member 'a' at byte 21 is given twice"},
		"too many in xargs":     {`{"vllm_xargs":` + manyNames(2000) + `}`, "an object has more than 1000 members"},
		"names without end":     {`{"` + strings.Repeat("x", 600_000) + `":1,"` + strings.Repeat("y", 600_000) + `":1}`, "the names of an object's members have more than 1048576 bytes, at byte 600006"},
		"nested too deep":       {`{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`, "nested deeper than 1000 levels"},
		"nested without end":    {`{"a":` + strings.Repeat(`{"a":`, 100_000), "nested deeper than 1000 levels"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tc.in))
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.Contains(t, e.Message, tc.want)
		})
	}
}

// Long strings are stepped over many bytes at a time: a special character must
// be seen at every position of such a step.
func TestParseSeesEveryPosition(t *testing.T) {
	for n := range 80 {
		for bad, want := range map[string]string{"\n": "control character in a string", "\xff": "invalid UTF-8", `\x`: "invalid escape in a string"} {
			_, err := Parse([]byte(`{"a":"` + strings.Repeat("~", n) + bad + strings.Repeat("~", 40) + `"}`))
			assert.ErrorContains(t, err, fmt.Sprintf("%s at byte %d", want, 6+n))
		}
		for _, good := range []string{`\"`, "é", " ", "\x7f", "!"} {
			in := `{"a":"` + strings.Repeat("~", n) + good + strings.Repeat("~", 40) + `"}`
			_, err := Parse([]byte(in))
			assert.NoError(t, err, in)
		}
	}
}

// Only the body itself may be large: what is counted when many bodies come is that. Names
// are kept while they are compared, and there is a limit to them.
func TestScanTakesLittleMemory(t *testing.T) {
	const (
		size   = 1 << 20
		little = size / 4
	)
	fill := func(before, unit, after string) string {
		return before + strings.TrimSuffix(strings.Repeat(unit, (size-1000)/len(unit)), ",") + after
	}
	names := "{"
	for i := range 500 {
		names += fmt.Sprintf(`"%s%d":0,`, strings.Repeat(`\n`, size/1100), i)
	}
	for name, tc := range map[string]struct {
		in    string
		most  uint64
		fails string
	}{
		"members":         {fill(`{"a":{`, `"a":0,`, `}}`), little, ""},
		"escaped members": {fill(`{"a":{`, `"\n":0,`, `}}`), little, ""},
		"a name":          {fill(`{"`, `x`, `":0}`), little, ""},
		"an escaped name": {fill(`{"`, `\n`, `":0}`), 2 * maxNames, ""},
		"names":           {names + `"messages":[]}`, 2 * maxNames, ""},
		"too long a name": {fill(`{"`, `\n`, strings.Repeat("x", 2000)+`":0}`), little, "names of an object's members"},
		"a deep name":     {fill(`{"a":{"`, `\n`, `":0}}`), little, ""},
		"a tool choice":   {fill(`{"tool_choice":"`, `\n`, `"}`), little, ""},
		"xargs":           {fill(`{"vllm_xargs":{"`, `\n`, `":0}}`), 2 * maxNames, ""},
		"lists":           {fill(`{"a":[`, strings.Repeat("[", MaxDepth-2)+strings.Repeat("]", MaxDepth-2)+",", `]}`), little, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := []byte(tc.in)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b, err := Parse(in)
			if err == nil {
				b.Rewrite(Set("max_tokens", "1"))
				IsString(b.Value("tool_choice"), "required")
			}
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, tc.most)
			if tc.fails != "" {
				assert.ErrorContains(t, err, tc.fails)
			} else {
				assert.NoError(t, err)
			}
		})
	}
}

func TestFields(t *testing.T) {
	b, err := Parse([]byte(`{"m\u006fdel" : "x" , "stream":true,"max_tokens": 1e2 ,"unknown":{"model":"y"}}`))
	require.NoError(t, err)
	assert.Equal(t, `"x"`, string(b.Value("model")))
	assert.Equal(t, `true`, string(b.Value("stream")))
	assert.Equal(t, `1e2`, string(b.Value("max_tokens")))
	assert.Nil(t, b.Value("Model"))
	assert.Nil(t, b.Value("messages"))
}

func TestEntries(t *testing.T) {
	e, err := MembersOf([]byte(` {"a" : {"x": [1, 2]}, "b\u0062":"<&>" } `))
	require.NoError(t, err)
	require.Len(t, e, 2)
	assert.Equal(t, `"a"`, string(e[0].Name))
	assert.Equal(t, `{"x": [1, 2]}`, string(e[0].Value))
	assert.Equal(t, `"b\u0062"`, string(e[1].Name))
	assert.Equal(t, `"<&>"`, string(e[1].Value))
	for _, bad := range []string{``, `null`, `[]`, `{"a":1,"a":2}`, `{"a":1} x`} {
		_, err := MembersOf([]byte(bad))
		assert.Error(t, err, bad)
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"n%d":%d`, i, i)
	}
	return "{" + b.String()[1:] + "}"
}
