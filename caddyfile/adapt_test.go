package caddyfile_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	_ "github.com/caddy-epd/caddy-epd/epdhandler"
)

var update = flag.Bool("update", false, "write what is adapted into the golden files")

const separator = "----------\n"

// TestAdapt holds every file of testdata/adapt against what follows its line of
// dashes: the JSON that the Caddyfile adapts to or, in the files named error_*,
// the end of the error.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".caddyfiletest")
		t.Run(name, func(t *testing.T) {
			golden, err := os.ReadFile(file)
			require.NoError(t, err)
			in, want, _ := strings.Cut(string(golden), separator)

			adapter := caddyfile.Adapter{ServerType: httpcaddyfile.ServerType{}}
			got, warnings, err := adapter.Adapt([]byte(in), nil)
			if strings.HasPrefix(name, "error_") {
				require.Error(t, err)
				require.NotEmpty(t, want, "what the error is")
				assert.Truef(t, strings.HasSuffix(err.Error(), strings.TrimSpace(want)), "got  %s\nwant %s", err, want)
				return
			}
			require.NoError(t, err)
			assert.Empty(t, warnings, "not as caddy fmt would write it")
			if *update {
				var indented strings.Builder
				enc := json.NewEncoder(&indented)
				enc.SetIndent("", "\t")
				require.NoError(t, enc.Encode(json.RawMessage(got)))
				require.NoError(t, os.WriteFile(file, []byte(in+separator+indented.String()), 0o644))
				return
			}
			assert.JSONEq(t, want, string(got))
		})
	}
}
