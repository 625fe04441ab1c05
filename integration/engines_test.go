package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// engines are the fake engines of one deployment.
type engines struct {
	encode, prefill, decode []*fakevllm.Engine
}

// startEngines starts this many engines of each role, with options changed by the functions.
func startEngines(t *testing.T, encode, prefill, decode int, change ...func(*fakevllm.Options)) *engines {
	t.Helper()
	cluster := fakevllm.NewCluster()
	start := func(role fakevllm.Role, n int) (list []*fakevllm.Engine) {
		for i := range n {
			o := fakevllm.Options{Role: role, Name: fmt.Sprintf("%s%d", role, i), RequireKV: role == fakevllm.Decode && prefill > 0}
			for _, f := range change {
				f(&o)
			}
			e, err := cluster.Start(o)
			require.NoError(t, err)
			t.Cleanup(e.Close)
			list = append(list, e)
		}
		return list
	}
	return &engines{
		encode:  start(fakevllm.Encode, encode),
		prefill: start(fakevllm.Prefill, prefill),
		decode:  start(fakevllm.Decode, decode),
	}
}

func (e *engines) all() []*fakevllm.Engine {
	return append(append(append([]*fakevllm.Engine{}, e.encode...), e.prefill...), e.decode...)
}

// of returns the engines of a role.
func (e *engines) of(role fakevllm.Role) []*fakevllm.Engine {
	return map[fakevllm.Role][]*fakevllm.Engine{fakevllm.Encode: e.encode, fakevllm.Prefill: e.prefill, fakevllm.Decode: e.decode}[role]
}

// consuming is the role that consumes embeddings, given the number of prefill engines.
func consuming(prefill int) fakevllm.Role {
	if prefill > 0 {
		return fakevllm.Prefill
	}
	return fakevllm.Decode
}

// block is the block of epd_proxy for these engines, with further lines. A line
// that begins with the name of a pool goes into that pool's block.
func (e *engines) block(lines ...string) string {
	pool := func(name string, list []*fakevllm.Engine) string {
		if len(list) == 0 {
			return name + " disable\n"
		}
		s := name
		for _, engine := range list {
			s += " " + engine.Addr()
		}
		s += " {\n"
		for _, l := range lines {
			if option, ok := strings.CutPrefix(l, name+" "); ok {
				s += option + "\n"
			}
		}
		return s + "}\n"
	}
	block := pool("encode", e.encode) + pool("prefill", e.prefill) + pool("decode", e.decode)
	for _, l := range lines {
		if name, _, _ := strings.Cut(l, " "); name != "encode" && name != "prefill" && name != "decode" {
			block += l + "\n"
		}
	}
	return block
}

// requests returns how many requests each role has got.
func (e *engines) requests() (encode, prefill, decode int) {
	count := func(list []*fakevllm.Engine) (n int) {
		for _, engine := range list {
			n += len(engine.Requests())
		}
		return n
	}
	return count(e.encode), count(e.prefill), count(e.decode)
}

// assertRequests asserts how many requests each role has got.
func (e *engines) assertRequests(t *testing.T, encode, prefill, decode int) {
	t.Helper()
	ge, gp, gd := e.requests()
	assert.Equal(t, []int{encode, prefill, decode}, []int{ge, gp, gd}, "requests at encode, prefill, decode")
}

// assertContract asserts that no engine has rejected a request.
func (e *engines) assertContract(t *testing.T) {
	t.Helper()
	for _, engine := range e.all() {
		assert.Empty(t, engine.Refusals(), "refused by %s", engine.Name())
	}
}

func (e *engines) reset() {
	for _, engine := range e.all() {
		engine.Reset()
	}
}

// image is an image part; different names give different images.
func image(name string) string {
	return fmt.Sprintf(`{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}`, name)
}

func text(s string) string {
	quoted, _ := json.Marshal(s)
	return fmt.Sprintf(`{"type":"text","text":%s}`, quoted)
}

// chat is a chat completions request with these parts and further members.
func chat(members string, parts ...string) string {
	return `{"model":"fake","messages":[{"role":"user","content":[` + strings.Join(parts, ",") + `]}]` + members + `}`
}
