package integration

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every Caddyfile that users copy is formatted, adapts and is valid.
func TestExamples(t *testing.T) {
	t.Parallel()
	var files []string
	require.NoError(t, filepath.WalkDir("../examples", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, "Caddyfile") {
			files = append(files, path)
		}
		return err
	}))
	require.NotEmpty(t, files)
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, snippet, _ := strings.Cut(string(readme), "```caddyfile\n")
	snippet, _, _ = strings.Cut(snippet, "```")
	fromReadme := filepath.Join(t.TempDir(), "README.Caddyfile")
	require.NoError(t, os.WriteFile(fromReadme, []byte(snippet), 0o600))

	for _, file := range append(files, fromReadme) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			for _, args := range [][]string{
				{"fmt", "--diff", file},
				{"adapt", "--config", file, "--adapter", "caddyfile"},
				{"validate", "--config", file, "--adapter", "caddyfile"},
			} {
				if file == fromReadme && args[0] == "fmt" {
					continue // its columns are aligned for the eye
				}
				cmd := exec.Command(binary, args...)
				home := t.TempDir()
				cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
				out, err := cmd.CombinedOutput()
				assert.NoError(t, err, "caddy %s: %s", args[0], out)
			}
		})
	}
}
