package media

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// reading is what vLLM makes of a content part: integration/oracle/parts.py.
type reading struct {
	Status int
	Load   [][3]any // kind, value, uuid
}

// oracle is what vLLM makes of thousands of parts of a user's message, by the part as Go
// writes it.
type oracle map[string]struct{ alone, beside reading }

func readOracle(t *testing.T) oracle {
	t.Helper()
	file, err := os.Open("testdata/parts.jsonl.gz")
	require.NoError(t, err)
	defer file.Close()
	in, err := gzip.NewReader(file)
	require.NoError(t, err)
	all := make(oracle)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var row struct {
			Part          any
			Role          *string
			Alone, Beside reading
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &row))
		if row.Part != nil && row.Role == nil {
			all[compact(t, row.Part)] = struct{ alone, beside reading }{row.Alone, row.Beside}
		}
	}
	require.NoError(t, lines.Err())
	require.Greater(t, len(all), 30_000)
	return all
}

// compact writes a part with its members sorted.
func compact(t *testing.T, part any) string {
	if raw, ok := part.([]byte); ok {
		part = nil
		require.NoError(t, json.Unmarshal(raw, &part), "%s", raw)
	}
	out, err := json.Marshal(part)
	require.NoError(t, err)
	return string(out)
}

// What ParseChat takes for media is what vLLM loads, of the bytes that engines get: as
// they are, with a uuid of ours, and alone in an encode request. Nothing else is loaded.
func TestOracle(t *testing.T) {
	all := readOracle(t)
	const before, after = `{"messages":[{"role":"user","content":[{"type":"text","text":"t"},`, `]}]}`
	for _, trusted := range []bool{false, true} {
		checked := make(map[string]int)
		for part := range all {
			_, set, err := ParseChat([]byte(before+part+after), 1, trusted)
			if err != nil {
				checked["refused"]++
				if r := all[part].beside; r.Status == 0 && plainly(part, r) {
					assert.Fail(t, "refused", "%s: %v", part, err)
				}
				continue
			}
			out := set.body.Rewrite().Bytes()
			got, known := all[compact(t, out[len(before):len(out)-len(after)])]
			switch {
			case !known:
				checked["unknown"]++
			case len(set.items) == 0:
				checked["no item"]++
				if !loadsNothing(got.beside, trusted) || !loadsNothing(got.alone, trusted) {
					assert.Fail(t, "an item for vLLM", "%s: %v", part, got)
				}
			default:
				checked["item"]++
				assertLoads(t, set, got.beside, part)
			}
			if len(set.items) == 0 {
				continue
			}
			item := set.items[0]
			named := set.body.Patched([]body.Patch{item.setUUID([]byte(`"U"`))})
			if got, known := all[compact(t, join(named.AppendPieces(nil, item.Range)))]; known {
				checked["with a uuid"]++
				assertLoads(t, set, got.beside, part)
			}
			for _, uuid := range []string{"", `"U"`} {
				var quoted []byte
				if uuid != "" {
					quoted = []byte(uuid)
				}
				if got, known := all[compact(t, join(set.appendAlone(nil, item, quoted)))]; known {
					checked["alone"+uuid]++
					assertLoads(t, set, got.alone, part)
				}
			}
		}
		t.Log(trusted, checked)
		for _, what := range []string{"refused", "no item", "item", "with a uuid", "alone", `alone"U"`} {
			assert.NotZero(t, checked[what], what)
		}
		assert.Less(t, checked["unknown"], len(all)/20)
	}
}

func join(pieces [][]byte) []byte { return bytes.Join(pieces, nil) }

// plainly reports whether vLLM takes a part as the one thing that it says it is: such a part
// must not be refused.
func plainly(raw string, r reading) bool {
	var part map[string]any
	if raw[0] != '{' || json.Unmarshal([]byte(raw), &part) != nil {
		return true
	}
	media, nulls := 0, 0
	for name, v := range part {
		switch kind, _ := carrier(name); {
		case kind != "" && v != nil:
			media++
		case kind != "":
			nulls++
		}
	}
	typ, typed := part["type"].(string)
	if _, there := part["type"]; there && !typed {
		return false // an engine loads the media, and then answers 500
	}
	if media == 0 {
		kind, _ := carrier(typ)
		return len(r.Load) == 0 && (part["uuid"] == nil || nulls == 0) && kind == "" && typ != inputImage
	}
	return media == 1 && part["uuid"] == nil && len(r.Load) == 1 &&
		slices.Contains([]any{"image", "audio", "video"}, r.Load[0][0]) && isText(r.Load[0][1])
}

func isText(v any) bool {
	text, ok := v.(string)
	// of audio whose data is no string, Python writes what there is
	return ok && text != "" && !strings.HasSuffix(text, ";base64,") && !strings.HasSuffix(text, ";base64,5") && !strings.HasSuffix(text, "]")
}

// loadsNothing reports whether an engine gets nothing that it would load, but what is
// ready or has been sent before by a client that may do so.
func loadsNothing(r reading, trusted bool) bool {
	return !slices.ContainsFunc(r.Load, func(l [3]any) bool {
		kind, _ := l[0].(string)
		ready := strings.HasSuffix(kind, "_embeds")
		return kind == imagePIL && l[1] != nil || ready && !trusted || !ready && isText(l[1]) || l[1] == nil && l[2] != nil && !trusted
	})
}

// assertLoads asserts that an engine loads the one item, and nothing else, if anything.
func assertLoads(t *testing.T, set *Set, got reading, part string) {
	if got.Status == 400 && strings.Contains(part, `"prompt_cache_breakpoint":"high"`) {
		return // engines judge members that are not about media
	}
	if got.Status != 0 || len(got.Load) != 1 {
		assert.Fail(t, "no item for vLLM", "%s: %v", part, got)
		return
	}
	i := set.items[0]
	url, _ := set.url(i, 1<<20)
	if i.Kind == inputAudio {
		url = fmt.Sprintf("data:audio/%s;base64,%s", formatText(set.body.Slice(i.format)), url)
	}
	want := map[string]string{"image_url": "image", "audio_url": "audio", "input_audio": "audio", "video_url": "video"}[i.Kind]
	if got.Load[0][0] != want || got.Load[0][1] != url {
		assert.Fail(t, "another item", "%s: %v", part, got.Load)
	}
}
