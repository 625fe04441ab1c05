package epdhandler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "epd-check",
		Usage: "[--config <path>] [--adapter <name>] [--api-key <key>]",
		Short: "Asks the engines behind every epd_proxy of a configuration who they are",
		Long: `
Loads a configuration, as 'caddy validate' does, and asks every instance of every
pool of every epd_proxy in it for /health, /v1/models and /version, the way that
the pool's transport says. Instances of prefill also get a short prompt, and
must hand over its KV blocks. It prints what it finds, and what does not fit
together. Nothing is served.

The exit status is 1 if anything is wrong.

--api-key is what the engines were given as --api-key, unless the pools set
Authorization themselves by header_up. It may also be in the environment, as
VLLM_API_KEY, where other users of the machine do not see it.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Flags().StringP("config", "c", "", "Configuration file (default: the Caddyfile here)")
			cmd.Flags().StringP("adapter", "a", "", "Name of config adapter to apply")
			cmd.Flags().String("api-key", "", "API key of the engines (default: VLLM_API_KEY of the environment)")
			cmd.Args = cobra.NoArgs
			cmd.RunE = caddycmd.WrapCommandFuncForCobra(cmdCheck)
		},
	})
}

func cmdCheck(fs caddycmd.Flags) (int, error) {
	handlers, err := provisionFile(fs.String("config"), fs.String("adapter"))
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	key := cmp.Or(fs.String("api-key"), os.Getenv("VLLM_API_KEY"))
	wrong := 0
	for i, h := range handlers {
		if len(handlers) > 1 {
			fmt.Printf("epd_proxy %d of %d\n", i+1, len(handlers))
		}
		wrong += h.check(context.Background(), os.Stdout, key)
	}
	if wrong > 0 {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("problems found: %d", wrong)
	}
	fmt.Println("all is well")
	return caddy.ExitCodeSuccess, nil
}

// provisionFile provisions a configuration and returns the handlers in it, always in the
// same order. They live until the process ends.
func provisionFile(file, adapter string) ([]*Handler, error) {
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
	// the log files are those of the Caddy that serves
	config.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{
		"default": {BaseLog: caddy.BaseLog{Level: zap.ErrorLevel.CapitalString()}},
	}}
	if _, err := caddy.ProvisionContext(config); err != nil {
		return nil, err
	}
	handlers := liveHandlers()
	if len(handlers) == 0 {
		return nil, fmt.Errorf("there is no epd_proxy in %s", file)
	}
	text := func(h *Handler) string { return string(caddyconfig.JSON(h, nil)) }
	slices.SortFunc(handlers, func(a, b *Handler) int { return cmp.Compare(text(a), text(b)) })
	return handlers, nil
}
