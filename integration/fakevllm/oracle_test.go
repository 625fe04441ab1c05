package fakevllm

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The engines read parts as vLLM does; integration/oracle/parts.py says how.
func TestOracle(t *testing.T) {
	file, err := os.Open("../../epdhandler/internal/media/testdata/parts.jsonl.gz")
	require.NoError(t, err)
	defer file.Close()
	in, err := gzip.NewReader(file)
	require.NoError(t, err)
	type result struct {
		Status int
		Load   [][]json.RawMessage // kind, value, uuid
	}
	checked := make(map[string]int)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var row struct {
			Part          json.RawMessage
			Role          *string
			Alone, Beside result
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &row))
		part, err := parseObject(row.Part)
		if err != nil || row.Role != nil || strings.Contains(string(row.Part), "prompt_cache_breakpoint") || oddForm(part) {
			continue
		}
		got, refused := loadsOf(part)
		want := row.Beside
		switch {
		case want.Status != 0:
			checked["refused"]++
			if !refused {
				assert.Fail(t, "not refused", "%s: %v", row.Part, got)
			}
		case refused:
			assert.Fail(t, "refused", "%s", row.Part)
		default:
			checked["loaded"]++
			assertSame(t, row.Part, want.Load, got)
		}
		if len(want.Load) == 1 && isItem(part) && !falsy(want.Load[0][1]) {
			checked["alone"]++
			if alone(part) != (row.Alone.Status == 0) {
				assert.Fail(t, "alone", "%s: %v", row.Part, row.Alone.Status)
			}
		}
	}
	t.Log(checked)
	assert.Greater(t, checked["loaded"], 10_000)
	assert.Greater(t, checked["refused"], 10_000)
	assert.Greater(t, checked["alone"], 1_000)
}

// isItem reports whether a part has media for an encoder and nothing else.
func isItem(part object) bool {
	media := 0
	for name := range part {
		switch name {
		case "image_url", "audio_url", "input_audio", "video_url":
			media++
		case "type", "uuid", "detail":
		default:
			return false
		}
	}
	return media == 1
}

// loadsOf is what the engines load of a part.
func loadsOf(part object) (loads []load, refused bool) {
	r, err := readPart(part)
	if err != nil {
		return nil, true
	}
	if _, isText := contents[r.kind]; isText && strings.Contains("text input_text output_text refusal thinking tool_reference", r.kind) {
		return nil, false
	}
	l, err := r.load()
	return []load{l}, err != nil
}

// oddForm reports whether a part has a member of a type that is invalid for the
// engines here, such as a uuid that is not a string.
func oddForm(part object) bool {
	_, isString := stringOf(part["uuid"])
	audio, _ := parseObject(part["input_audio"])
	data, there := audio["data"]
	_, isText := stringOf(data)
	return part.has("uuid") && !isString || there && !falsy(data) && !isText
}

func assertSame(t *testing.T, part []byte, want [][]json.RawMessage, got []load) {
	if len(want) != len(got) {
		assert.Fail(t, "other loads", "%s: %s, %v", part, want, got)
		return
	}
	for n, l := range got {
		value, uuid := canonical(want[n][1]), canonical(want[n][2])
		kind, _ := stringOf(want[n][0])
		_, isString := stringOf(l.uuid)
		if kind != l.kind || value != canonical(l.value) || (isString || l.uuid == nil) && uuid != canonical(l.uuid) {
			assert.Fail(t, "another load", "%s: %s, not %s %s %s", part, want, l.kind, l.value, l.uuid)
		}
	}
}
