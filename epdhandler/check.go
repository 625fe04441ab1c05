package epdhandler

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// checkTimeout is how long an instance may take for each question of a check.
const checkTimeout = 5 * time.Second

// finding is what a check has found out about an instance.
type finding struct {
	target
	wrong   string // what is wrong with it, empty if nothing
	version string // of vLLM, empty if it does not say
	models  string // that it serves
}

// check asks every instance of the handler's pools who it is, with this API key if there
// is one. It writes what it has found, and returns how much of it is wrong.
func (h *Handler) check(ctx context.Context, w io.Writer, key string) (wrong int) {
	all := targets(ctx, h.pools()...)
	findings := make([]finding, len(all))
	askAll(all, func(i int, t target) { findings[i] = t.examine(ctx, key, h.bootstraps[t.address()]) })

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		if f.wrong != "" {
			wrong++
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", f.pool.stage, cmp.Or(f.address(), "dynamic"), f)
	}
	_ = table.Flush()
	for _, line := range mismatches(findings) {
		wrong++
		_, _ = fmt.Fprintln(w, line)
	}
	return wrong
}

// String says it in words.
func (f finding) String() string {
	if f.wrong != "" {
		return f.wrong
	}
	version := "does not tell its version"
	if f.version != "" {
		version = "vLLM " + f.version
	}
	return fmt.Sprintf("up, %s, serves %s", version, f.models)
}

// examine asks one instance, and its bootstrap server if it has one.
func (t target) examine(ctx context.Context, key string, kv *bootstrap) finding {
	f := finding{target: t}
	get := func(path string) reply {
		q := question{method: http.MethodGet, path: path, timeout: checkTimeout}
		if key != "" {
			q.header = http.Header{"Authorization": {"Bearer " + key}}
		}
		return t.ask(ctx, q)
	}
	health := get("/health")
	switch {
	case health.err != nil:
		f.wrong = whyNoReply(health.err)
		return f
	case health.status != http.StatusOK:
		f.wrong = fmt.Sprintf("/health answers %d: is that vLLM, and has it started well?", health.status)
		return f
	}
	models := get("/v1/models")
	switch {
	case models.err != nil:
		f.wrong = "/v1/models: " + whyNoReply(models.err)
	case models.status == http.StatusUnauthorized && key == "":
		f.wrong = "answers 401: engines have --api-key; give --api-key here, or set VLLM_API_KEY"
	case models.status == http.StatusUnauthorized:
		f.wrong = "answers 401: it has another --api-key"
	case models.status != http.StatusOK:
		f.wrong = fmt.Sprintf("/v1/models answers %d: is that vLLM's API server?", models.status)
	default:
		if f.models = modelNames(models.body); f.models == "" {
			f.wrong = "/v1/models lists no models: is that vLLM's API server?"
		}
	}
	switch {
	case f.wrong != "" || t.pool.stage != "prefill":
	case kv != nil:
		if _, err := kv.ask(ctx); err != nil {
			f.wrong = "its bootstrap server, " + kv.address + ": " + whyNoReply(err)
		}
	default:
		f.wrong = t.handsOver(ctx, key, firstModel(models.body))
	}
	if version := get("/version"); version.err == nil && version.status == http.StatusOK {
		var v struct{ Version string }
		_ = json.Unmarshal(version.body, &v) // what is none is empty
		f.version = printable(v.Version)
	}
	return f
}

// handsOver has an instance prefill a prompt, and says what is wrong if it hands nothing over.
// Nobody reads the blocks, which takes a little memory there until their lease is over.
func (t target) handsOver(ctx context.Context, key, model string) string {
	// a few hundred tokens, for older releases hand over whole blocks only; of which no first
	// token is the last
	prompt := strings.Repeat("one two three four ", 64)
	text, _ := json.Marshal(map[string]any{
		"model": model, "prompt": prompt, "max_tokens": 1, "ignore_eos": true, "stream": false,
		body.KVTransferParams.String(): json.RawMessage(kvStub),
	})
	q := question{method: http.MethodPost, path: "/v1/completions", body: text, timeout: prefillCheckTimeout}
	q.header = http.Header{"X-Request-Id": {"epd-check-" + hex6()}}
	if key != "" {
		q.header["Authorization"] = []string{"Bearer " + key}
	}
	said := t.ask(ctx, q)
	switch {
	case errors.Is(said.err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer to a prompt of 256 words within %s: is it busy, or stuck?", prefillCheckTimeout)
	case said.err != nil:
		return "/v1/completions: " + whyNoReply(said.err)
	case said.status != http.StatusOK:
		return fmt.Sprintf("/v1/completions answers %d to a prompt of 256 words", said.status)
	}
	if kv, _, err := transferParams(said.body); err != nil || kv == nil {
		return "hands no KV blocks over: does it have --kv-transfer-config, with a connector that answers with kv_transfer_params?"
	}
	return ""
}

// prefillCheckTimeout is longer than checkTimeout: a first request may compile something.
const prefillCheckTimeout = 60 * time.Second

// firstModel returns the first name in an answer to GET /v1/models.
func firstModel(answer []byte) string {
	var list struct{ Data []struct{ ID string } }
	if json.Unmarshal(answer, &list) != nil || len(list.Data) == 0 {
		return ""
	}
	return list.Data[0].ID
}

// modelNames returns the names in an answer to GET /v1/models, in order.
func modelNames(answer []byte) string {
	var list struct{ Data []struct{ ID string } }
	if json.Unmarshal(answer, &list) != nil {
		return ""
	}
	var names []string
	for _, m := range list.Data {
		names = append(names, printable(m.ID))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// printable keeps what an engine says from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || '\x7f' <= r && r < '\xa0' {
			return -1
		}
		return r
	}, s)
}

// whyNoReply says why an instance could not be asked, and what to look at. It goes by the
// words, because the errors of a transport's dialer hide what they wrap.
func whyNoReply(err error) string {
	text := err.Error()
	const hangsUp = "closes the connection before it has answered: does it want https://?" // uvicorn with TLS does so
	for _, known := range []struct{ words, why string }{
		{"connection refused", "connection refused: is it running, and at this address and port?"},
		{"no such host", "there is no host of this name: is it spelled right?"},
		{"no such file or directory", "there is no such socket: is it running?"},
		{"i/o timeout", "cannot be reached within " + checkTimeout.String() + ": does a firewall drop what is sent?"},
		{"context deadline exceeded", "no answer within " + checkTimeout.String() + ": is it still starting, or stuck?"},
		{"not look like a TLS handshake", "does not speak TLS: write http://"},
		{"malformed HTTP", "does not speak HTTP: does it want https://?"},
		{"EOF", hangsUp},
		{"connection reset", hangsUp},
	} {
		if strings.Contains(text, known.words) {
			return known.why
		}
	}
	return printable(text)
}

// mismatches says what does not fit together: requests name one model for all stages,
// embeddings and KV caches are understood by the version that made them, and instances of
// one pool stand in for each other.
func mismatches(findings []finding) (lines []string) {
	for _, aspect := range []struct {
		what   func(finding) string
		differ string
	}{
		{func(f finding) string { return f.models }, "serve different models"},
		{func(f finding) string { return f.version }, "run different versions of vLLM"},
	} {
		var agreed []finding // one of each pool whose instances do not differ
		for _, stage := range stages {
			pool := slices.DeleteFunc(slices.Clone(findings), func(f finding) bool { return f.pool.stage != stage })
			if differ := differences(pool, aspect.what, target.address); differ != "" {
				lines = append(lines, fmt.Sprintf("the instances of %s %s: %s", stage, aspect.differ, differ))
			} else if i := slices.IndexFunc(pool, func(f finding) bool { return aspect.what(f) != "" }); i >= 0 {
				agreed = append(agreed, pool[i])
			}
		}
		if differ := differences(agreed, aspect.what, func(t target) string { return t.pool.stage }); differ != "" {
			lines = append(lines, fmt.Sprintf("the pools %s: %s", aspect.differ, differ))
		}
	}
	return append(append(lines, tooOld(findings)...), inSeveral(findings)...)
}

// tooOld names the engines that cannot take embeddings from an encoder: vLLM can from
// 0.11.1 on.
func tooOld(findings []finding) (lines []string) {
	for _, f := range findings {
		var major, minor, patch int
		_, _ = fmt.Sscanf(f.version, "%d.%d.%d", &major, &minor, &patch) // what is missing is 0
		if f.version != "" && slices.Compare([]int{major, minor, patch}, []int{0, 11, 1}) < 0 {
			lines = append(lines, fmt.Sprintf("%s %s runs vLLM %s, which knows no encoders: 0.11.1 is the first", f.pool.stage, f.address(), f.version))
		}
	}
	return lines
}

// inSeveral names the instances that are in several pools: an engine has one role.
func inSeveral(findings []finding) (lines []string) {
	stages := make(map[string]string)
	for _, f := range findings {
		if f.upstream == nil {
			continue // the pool has no instances to be found
		}
		if stage, known := stages[f.address()]; known && stage != f.pool.stage {
			lines = append(lines, fmt.Sprintf("%s is in the pools %s and %s, but an engine has one role", f.address(), stage, f.pool.stage))
		}
		stages[f.address()] = f.pool.stage
	}
	return lines
}

// differences lists who has what, if not all have the same. Who says nothing does not
// count.
func differences(findings []finding, what func(finding) string, who func(target) string) string {
	have := make(map[string][]string)
	for _, f := range findings {
		if v := what(f); v != "" {
			have[v] = append(have[v], who(f.target))
		}
	}
	if len(have) < 2 {
		return ""
	}
	var groups []string
	for _, v := range slices.Sorted(maps.Keys(have)) {
		groups = append(groups, fmt.Sprintf("%s (%s)", v, strings.Join(have[v], " ")))
	}
	return strings.Join(groups, ", ")
}
