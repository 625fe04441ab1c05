package operate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

const (
	// checkTimeout is how long an instance may take to answer each question.
	checkTimeout = 5 * time.Second

	// prefillCheckTimeout is longer: the first request may compile something.
	prefillCheckTimeout = 60 * time.Second
)

// finding is the result of checking an instance.
type finding struct {
	engine.Target
	wrong   string // what is wrong with it; empty: nothing
	version string // of vLLM, empty if it does not say
	models  string // that it serves
}

// check asks every instance of the site's pools for its state, with this API key if there is one.
// It writes the findings, and returns the number of problems.
func check(ctx context.Context, w io.Writer, site *process.Site, key string) (wrong int) {
	all := engine.Targets(ctx, site.Pools()...)
	findings := make([]finding, len(all))
	engine.AskAll(all, func(i int, t engine.Target) {
		findings[i] = examination{t, key}.examine(ctx, site.Bootstraps[t.Address()])
	})

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		if f.wrong != "" {
			wrong++
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", f.Pool.Stage, cmp.Or(f.Address(), "dynamic"), f)
	}
	_ = table.Flush()
	for _, line := range mismatches(findings) {
		wrong++
		_, _ = fmt.Fprintln(w, line)
	}
	return wrong
}

// String describes the finding.
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

// examination is the check of one instance.
type examination struct {
	engine.Target
	key string // API key; empty: none
}

func (e examination) get(ctx context.Context, path string) engine.Reply {
	return e.ask(ctx, engine.Question{Method: http.MethodGet, Path: path, Timeout: checkTimeout})
}

func (e examination) ask(ctx context.Context, q engine.Question) engine.Reply {
	if e.key != "" {
		if q.Header == nil {
			q.Header = make(http.Header)
		}
		q.Header["Authorization"] = []string{"Bearer " + e.key}
	}
	return e.Ask(ctx, q)
}

// examine asks the instance, and its bootstrap server if it has one.
func (e examination) examine(ctx context.Context, kv *handover.Bootstrap) finding {
	f := finding{Target: e.Target}
	if f.wrong = e.healthProblem(ctx); f.wrong != "" {
		return f
	}
	models := e.get(ctx, "/v1/models")
	f.models, f.wrong = e.served(models)
	if f.wrong == "" && e.Pool.Stage == telemetry.Prefill {
		f.wrong = e.handOverProblem(ctx, kv, firstModel(models.Body))
	}
	if version := e.get(ctx, "/version"); version.Err == nil && version.Status == http.StatusOK {
		var v struct{ Version string }
		_ = json.Unmarshal(version.Body, &v) // without a version it stays empty
		f.version = printable(v.Version)
	}
	return f
}

func (e examination) healthProblem(ctx context.Context) string {
	health := e.get(ctx, "/health")
	switch {
	case health.Err != nil:
		return whyNoReply(health.Err)
	case health.Status != http.StatusOK:
		return fmt.Sprintf("/health answers %d: is that vLLM, and has it started well?", health.Status)
	}
	return ""
}

// served returns the names of the models in an answer to GET /v1/models, or what is wrong with it.
func (e examination) served(models engine.Reply) (names, wrong string) {
	switch {
	case models.Err != nil:
		return "", "/v1/models: " + whyNoReply(models.Err)
	case models.Status == http.StatusUnauthorized && e.key == "":
		return "", "answers 401: engines have --api-key; give --api-key here, or set VLLM_API_KEY"
	case models.Status == http.StatusUnauthorized:
		return "", "answers 401: it has another --api-key"
	case models.Status != http.StatusOK:
		return "", fmt.Sprintf("/v1/models answers %d: is that vLLM's API server?", models.Status)
	}
	if names = modelNames(models.Body); names == "" {
		return "", "/v1/models lists no models: is that vLLM's API server?"
	}
	return names, ""
}

// handOverProblem asks an instance of prefill for what it needs to hand KV blocks over.
func (e examination) handOverProblem(ctx context.Context, kv *handover.Bootstrap, model string) string {
	if kv == nil {
		return e.prefillProblem(ctx, model)
	}
	if _, err := kv.Ask(ctx); err != nil {
		return "its bootstrap server, " + kv.Address + ": " + whyNoReply(err)
	}
	return ""
}

// prefillProblem has the instance prefill a prompt, and returns what is wrong if it hands no KV
// blocks over. Nobody reads the blocks: they take some memory there until their lease ends.
func (e examination) prefillProblem(ctx context.Context, model string) string {
	// a few hundred tokens, because older releases hand over whole blocks only
	prompt := strings.Repeat("one two three four ", 64)
	said := e.ask(ctx, engine.Question{
		Method: http.MethodPost, Path: "/v1/completions", Body: handover.Probe(model, prompt), Timeout: prefillCheckTimeout,
		Header: http.Header{"X-Request-Id": {"epd-check-" + engine.RandomHex(6)}},
	})
	switch {
	case errors.Is(said.Err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer to a prompt of 256 words within %s: is it busy, or stuck?", prefillCheckTimeout)
	case said.Err != nil:
		return "/v1/completions: " + whyNoReply(said.Err)
	case said.Status != http.StatusOK:
		return fmt.Sprintf("/v1/completions answers %d to a prompt of 256 words", said.Status)
	case !handover.Answers(said.Body):
		return "hands no KV blocks over: does it have --kv-transfer-config, with a connector that answers with kv_transfer_params?"
	}
	return ""
}

// firstModel returns the first name in an answer to GET /v1/models.
func firstModel(answer []byte) string {
	var list struct{ Data []struct{ ID string } }
	if json.Unmarshal(answer, &list) != nil || len(list.Data) == 0 {
		return ""
	}
	return list.Data[0].ID
}

// modelNames returns the names in an answer to GET /v1/models, sorted.
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

// printable removes control characters, which an engine could send to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || '\x7f' <= r && r < '\xa0' {
			return -1
		}
		return r
	}, s)
}

// whyNoReply describes why an instance did not answer, and what to look at. It goes by the text,
// because the errors of a transport's dialer do not unwrap to their causes.
func whyNoReply(err error) string {
	text := err.Error()
	const hangsUp = "closes the connection before it has answered: does it want https://?" // as uvicorn with TLS does
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
