package integration

import (
	"encoding/pem"
	"io/fs"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every Caddyfile in examples and documents can be adapted and is valid.
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
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { runCaddy(t, "fmt", "--diff", file) })
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	documented := caddyfiles(t)
	require.NotEmpty(t, documented)
	for name, code := range documented { // not formatted: the documents align columns
		file := filepath.Join(dir, name)
		code = strings.ReplaceAll(code, "/etc/caddy/engines-ca.pem", ca)
		require.NoError(t, os.WriteFile(file, []byte(code), 0o600))
		files = append(files, file)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			runCaddy(t, "adapt", "--config", file, "--adapter", "caddyfile")
			runCaddy(t, "validate", "--config", file, "--adapter", "caddyfile")
		})
	}
}

func runCaddy(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	out, err := cmd.CombinedOutput()
	assert.NoError(t, err, "caddy %s: %s", args[0], out)
}
