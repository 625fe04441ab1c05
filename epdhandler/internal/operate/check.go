package operate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

func checkCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "epd-check",
		Usage: "[--config <path>] [--adapter <name>] [--api-key <key>]",
		Short: "Checks the engines behind every epd_proxy of a configuration",
		Long: `
Loads a configuration, as 'caddy validate' does, and asks every instance of every
pool of every epd_proxy in it for /health, /v1/models and /version, through the
pool's transport. Instances of prefill also get a short prompt, and must hand
its KV blocks over. The command prints what the instances answer, and what does
not fit together. It serves nothing.

The exit status is 1 if there is any problem.

--api-key is the --api-key of the engines. Pools that set Authorization by
header_up do not need it. It can also be given as VLLM_API_KEY in the
environment, where other users of the machine do not see it.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Flags().StringP("config", "c", "", "Configuration file (default: Caddyfile in the current directory)")
			cmd.Flags().StringP("adapter", "a", "", "Name of config adapter to apply")
			cmd.Flags().String("api-key", "", "API key of the engines (default: the environment's VLLM_API_KEY)")
			cmd.Args = cobra.NoArgs
			cmd.RunE = caddycmd.WrapCommandFuncForCobra(cmdCheck)
		},
	}
}

func cmdCheck(fs caddycmd.Flags) (int, error) {
	sites, err := provisionFile(fs.String("config"), fs.String("adapter"))
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	key := cmp.Or(fs.String("api-key"), os.Getenv("VLLM_API_KEY"))
	wrong := 0
	for i, s := range sites {
		if len(sites) > 1 {
			fmt.Printf("epd_proxy %d of %d\n", i+1, len(sites))
		}
		wrong += check(context.Background(), os.Stdout, s, key)
	}
	if wrong > 0 {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("problems found: %d", wrong)
	}
	fmt.Println("all is well")
	return caddy.ExitCodeSuccess, nil
}

// provisionFile provisions a configuration and returns the sites in it, always in the same
// order. They live until the process ends.
func provisionFile(file, adapter string) ([]*process.Site, error) {
	input, file, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	if input == nil {
		return nil, errors.New("there is no Caddyfile here; use --config")
	}
	var config *caddy.Config
	if err := caddy.StrictUnmarshalJSON(caddy.RemoveMetaFields(input), &config); err != nil {
		return nil, fmt.Errorf("decoding config: %w", err)
	}
	// the log files of the configuration belong to the Caddy that serves
	config.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{
		"default": {BaseLog: caddy.BaseLog{Level: zap.ErrorLevel.CapitalString()}},
	}}
	if _, err := caddy.ProvisionContext(config); err != nil {
		return nil, err
	}
	sites := process.Current().Sites()
	if len(sites) == 0 {
		return nil, fmt.Errorf("there is no epd_proxy in %s", file)
	}
	slices.SortFunc(sites, func(a, b *process.Site) int { return strings.Compare(textOf(a), textOf(b)) })
	return sites, nil
}

func textOf(s *process.Site) string {
	var text []byte
	for _, p := range s.Pools() {
		text = append(text, caddyconfig.JSON(p.Handler, nil)...)
	}
	return string(text)
}

// How long an instance may take to answer. The first prompt may make it compile something.
const (
	checkTimeout  = 5 * time.Second
	promptTimeout = 60 * time.Second
)

type finding struct {
	engine.Target
	version string // of vLLM, empty if it does not say
	models  string // that it serves
	err     error  // what is wrong with it
}

// check asks every instance of the site's pools for its state, with this API key if there is one.
// It writes the findings, and returns the number of problems.
func check(ctx context.Context, w io.Writer, site *process.Site, key string) (wrong int) {
	all := engine.Targets(ctx, site.Pools()...)
	findings := make([]finding, len(all))
	engine.AskAll(all, func(i int, t engine.Target) {
		findings[i].Target = t
		findings[i].err = findings[i].examine(ctx, key, site.Bootstraps[t.Address()])
	})

	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		said := fmt.Sprintf("up, vLLM %s, serves %s", cmp.Or(f.version, "of an unknown version"), f.models)
		if f.err != nil {
			wrong++
			said = printable(f.err.Error())
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", f.Pool.Stage, cmp.Or(f.Address(), "dynamic"), said)
	}
	_ = table.Flush()
	for _, line := range mismatches(findings) {
		wrong++
		_, _ = fmt.Fprintln(w, line)
	}
	return wrong
}

// examine asks the instance what it serves, and an instance of prefill whether it can hand KV
// blocks over: its bootstrap server if it has one, else by a prompt.
func (f *finding) examine(ctx context.Context, key string, kv *handover.Bootstrap) error {
	get := func(path string) ([]byte, error) {
		return f.ask(ctx, key, engine.Question{Method: http.MethodGet, Path: path, Timeout: checkTimeout})
	}
	if _, err := get("/health"); err != nil {
		return err
	}
	answer, err := get("/v1/models")
	if err != nil {
		return err
	}
	var model string
	if model, f.models = modelNames(answer); model == "" {
		return errors.New("/v1/models lists no models: is that vLLM's API server?")
	}
	if answer, err := get("/version"); err == nil {
		var v struct{ Version string }
		_ = json.Unmarshal(answer, &v) // without a version it stays empty
		f.version = printable(v.Version)
	}
	switch {
	case f.Pool.Stage != telemetry.Prefill:
		return nil
	case kv == nil:
		return f.prefill(ctx, key, model)
	}
	if _, err := kv.Ask(ctx); err != nil {
		return fmt.Errorf("its bootstrap server, %s: %w", kv.Address, explain(err))
	}
	return nil
}

// prefill has the instance prefill a prompt, and fails if it hands no KV blocks over. Nobody reads
// the blocks: they take some memory there until their lease ends.
func (f *finding) prefill(ctx context.Context, key, model string) error {
	// a few hundred tokens, because older releases hand over whole blocks only
	prompt := strings.Repeat("one two three four ", 64)
	answer, err := f.ask(ctx, key, engine.Question{Method: http.MethodPost, Path: "/v1/completions", Body: handover.Probe(model, prompt), Timeout: promptTimeout})
	if err == nil && !handover.Answers(answer) {
		err = errors.New("hands no KV blocks over: does it have --kv-transfer-config, with a connector that answers with kv_transfer_params?")
	}
	return err
}

func (f *finding) ask(ctx context.Context, key string, q engine.Question) ([]byte, error) {
	q.Header = http.Header{"X-Request-Id": {"epd-check-" + engine.RandomHex(6)}}
	if key != "" {
		q.Header["Authorization"] = []string{"Bearer " + key}
	}
	said := f.Ask(ctx, q)
	switch {
	case said.Err != nil:
		return nil, explain(said.Err)
	case said.Status == http.StatusUnauthorized && key == "":
		return nil, errors.New("answers 401: engines have --api-key; give --api-key here, or set VLLM_API_KEY")
	case said.Status == http.StatusUnauthorized:
		return nil, errors.New("answers 401: it has another --api-key")
	case said.Status != http.StatusOK:
		return nil, fmt.Errorf("%s answers %d: is that vLLM, and has it started well?", q.Path, said.Status)
	}
	return said.Body, nil
}

func modelNames(answer []byte) (first, all string) {
	var list struct{ Data []struct{ ID string } }
	if json.Unmarshal(answer, &list) != nil || len(list.Data) == 0 {
		return "", ""
	}
	var names []string
	for _, m := range list.Data {
		names = append(names, printable(m.ID))
	}
	slices.Sort(names)
	return list.Data[0].ID, strings.Join(names, ", ")
}

// printable removes control characters, which an engine could send to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
}

// explain says what to look at if an instance does not answer. It goes by the text, because the
// errors of a transport's dialer do not unwrap to their causes.
func explain(err error) error {
	const hangsUp = "closes the connection before it has answered: does it want https://?" // as uvicorn with TLS does
	for _, known := range [][2]string{
		{"connection refused", "connection refused: is it running, and at this address and port?"},
		{"i/o timeout", "cannot be reached in time: does a firewall drop what is sent?"},
		{"context deadline exceeded", "no answer in time: is it still starting, busy, or stuck?"},
		{"not look like a TLS handshake", "does not speak TLS: write http://"},
		{"malformed HTTP", "does not speak HTTP: does it want https://?"},
		{"EOF", hangsUp},
		{"connection reset", hangsUp},
	} {
		if strings.Contains(err.Error(), known[0]) {
			return errors.New(known[1])
		}
	}
	return err
}

// mismatches lists differences that break requests: a request names one model for all stages,
// embeddings and KV blocks may be read only by the version that made them, and an engine has one role.
func mismatches(findings []finding) (lines []string) {
	for _, aspect := range []struct {
		differ string
		of     func(finding) string
	}{
		{"serve different models", func(f finding) string { return f.models }},
		{"run different versions of vLLM", func(f finding) string { return f.version }},
	} {
		have := make(map[string][]string)
		for _, f := range findings {
			if v := aspect.of(f); v != "" {
				have[v] = append(have[v], f.Address())
			}
		}
		var groups []string
		for _, v := range slices.Sorted(maps.Keys(have)) {
			groups = append(groups, fmt.Sprintf("%s (%s)", v, strings.Join(have[v], " ")))
		}
		if len(groups) > 1 {
			lines = append(lines, fmt.Sprintf("engines %s: %s", aspect.differ, strings.Join(groups, ", ")))
		}
	}
	stages := make(map[string]string)
	for _, f := range findings {
		stage, at := f.Pool.Stage, f.Address()
		if isTooOld(f.version) {
			lines = append(lines, fmt.Sprintf("%s %s runs vLLM %s, which knows no encoders: 0.11.1 is the first", stage, at, f.version))
		}
		if other := stages[at]; at != "" && other != "" && other != stage {
			lines = append(lines, fmt.Sprintf("%s is in the pools %s and %s, but an engine has one role", at, other, stage))
		}
		stages[at] = stage
	}
	return lines
}

// isTooOld reports whether a version of vLLM cannot take embeddings from an encoder.
func isTooOld(version string) bool {
	var major, minor, patch int
	_, _ = fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch) // what is missing is 0
	return version != "" && slices.Compare([]int{major, minor, patch}, []int{0, 11, 1}) < 0
}
