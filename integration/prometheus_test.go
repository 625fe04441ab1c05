package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// needPrometheus skips a test if the programs of Prometheus are missing.
func needPrometheus(t *testing.T) {
	t.Helper()
	for _, program := range []string{"prometheus", "promtool"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed (Debian: apt install prometheus)", program)
		}
	}
}

// prometheus is a running Prometheus.
type prometheus struct {
	url string
}

// startPrometheus runs the configuration of examples/prometheus with another target and
// shorter intervals.
func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	for name, replace := range map[string]*strings.Replacer{
		"prometheus.yml": strings.NewReplacer("proxy:9180", target, "interval: 15s", "interval: 500ms"),
		"alerts.yml":     strings.NewReplacer(),
	} {
		file, err := os.ReadFile("../examples/prometheus/" + name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(replace.Replace(string(file))), 0o600))
	}
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr, "--log.level=warn")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		assert.NoError(t, cmd.Wait(), "%s", &log)
		if t.Failed() {
			t.Log(&log)
		}
	})
	p := &prometheus{"http://" + addr}
	require.Eventually(t, func() bool { return p.has("caddy_epd_body_bytes_limit") }, time.Minute, tick, "Prometheus does not scrape Caddy")
	return p
}

// get calls the API and decodes the member data of the answer into v.
func (p *prometheus) get(path string, v any) error {
	res, err := http.Get(p.url + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		Error string
		Data  json.RawMessage
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, v)
}

// has reports whether an expression currently has a value that is a number.
func (p *prometheus) has(expr string) bool {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if p.get("query?query="+url.QueryEscape(expr), &data) != nil {
		return false
	}
	for _, sample := range data.Result {
		if n, err := strconv.ParseFloat(fmt.Sprint(sample.Value[1]), 64); err == nil && !math.IsNaN(n) {
			return true
		}
	}
	return false
}

// catchUp waits until Prometheus has scraped the current values of Caddy.
func (p *prometheus) catchUp(t *testing.T) {
	t.Helper()
	now := float64(time.Now().UnixMilli()) / 1000
	require.Eventually(t, func() bool { return p.has(fmt.Sprintf("timestamp(caddy_epd_body_bytes_limit) > %f", now)) }, waitLong, tick)
}

// rule is an alert or a recording rule as Prometheus has parsed it.
type rule struct {
	Type, Name, Query, Health, LastError string
}

func (p *prometheus) rules(t *testing.T) (all []rule) {
	t.Helper()
	var data struct {
		Groups []struct{ Rules []rule }
	}
	require.NoError(t, p.get("rules", &data))
	for _, g := range data.Groups {
		all = append(all, g.Rules...)
	}
	return all
}
