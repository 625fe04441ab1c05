package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
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

// textOf is a text that sites can be sorted by.
func textOf(s *process.Site) string {
	var text []byte
	for _, p := range s.Pools() {
		text = append(text, caddyconfig.JSON(p.Handler, nil)...)
	}
	return string(text)
}
