package integration

import (
	"bytes"
	"encoding/json"
	"go/version"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const (
	dockerConfig     = "../examples/docker/caddy/Caddyfile"
	kubernetesConfig = "../examples/kubernetes/Caddyfile"
	productionConfig = "../examples/production.Caddyfile"
)

// manifest is the part of a Kubernetes manifest that the tests read.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Template    struct{ Spec podSpec }
		PodMonitors []struct{ Port string } `yaml:"podMetricsEndpoints"`
	}
}

type podSpec struct {
	GracePeriod int `yaml:"terminationGracePeriodSeconds"`
	Containers  []container
}

type container struct {
	Args  []string
	Ports []struct {
		Name   string
		Number string `yaml:"containerPort"`
	}
	Ready     probe `yaml:"readinessProbe"`
	Live      probe `yaml:"livenessProbe"`
	Lifecycle struct {
		PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
	}
}

type probe struct {
	Get struct{ Path, Port string } `yaml:"httpGet"`
}

// endpoint is a path on a port of the unchanged example.
type endpoint struct{ port, path string }

// port returns the number of a named port.
func (c container) port(t *testing.T, name string) string {
	for _, p := range c.Ports {
		if p.Name == name {
			return p.Number
		}
	}
	require.FailNow(t, "no port of this name", name)
	return ""
}

func (c container) endpoint(t *testing.T, p probe) endpoint {
	return endpoint{c.port(t, p.Get.Port), p.Get.Path}
}

func readManifest(t *testing.T, file, kind, name string) manifest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../examples/kubernetes", file))
	require.NoError(t, err)
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var m manifest
		require.NoError(t, d.Decode(&m), "no %s %s in %s", kind, name, file)
		if m.Kind == kind && m.Metadata.Name == name {
			return m
		}
	}
}

// compose is the part of the Compose file that the tests read.
type compose struct {
	Services map[string]struct {
		Image           string
		Command         []string
		StopGracePeriod time.Duration `yaml:"stop_grace_period"`
	}
}

func readCompose(t *testing.T) (c compose) {
	t.Helper()
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "../examples/docker/compose.yaml")), &c))
	return c
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}

// matches returns the matches of an expression's group in a file.
func matches(t *testing.T, file, expression string) (found []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(read(t, file), -1) {
		found = append(found, m[1])
	}
	require.NotEmpty(t, found, "%s in %s", expression, file)
	return found
}

func adapt(t *testing.T, file string) map[string]any {
	t.Helper()
	out, err := exec.Command(binary, "adapt", "--config", file, "--adapter", "caddyfile").Output()
	require.NoError(t, err)
	return object(t, out)
}

// Whatever stops Caddy waits longer than Caddy waits for its streams.
func TestGracePeriods(t *testing.T) {
	t.Parallel()
	proxy := readManifest(t, "proxy.yaml", "Deployment", "proxy").Spec.Template.Spec
	preStop := proxy.Containers[0].Lifecycle.PreStop.Sleep.Seconds
	unit, err := strconv.Atoi(matches(t, "../examples/systemd/epd_proxy.service", `TimeoutStopSec=(\d+)\n`)[0])
	require.NoError(t, err)
	for file, killed := range map[string]time.Duration{
		dockerConfig:     readCompose(t).Services["proxy"].StopGracePeriod,
		kubernetesConfig: time.Duration(proxy.GracePeriod-preStop) * time.Second,
		productionConfig: time.Duration(unit) * time.Second,
	} {
		grace, _ := entry(adapt(t, file)).at("apps", "http", "grace_period").(float64)
		assert.Positive(t, grace, file)
		assert.Greater(t, killed, time.Duration(grace), file)
	}
}

// A proxy without engines is alive: a restart would not help. Readiness is separate; for
// pools that Kubernetes fills, Kubernetes decides it.
func TestProbes(t *testing.T) {
	t.Parallel()
	pod := readManifest(t, "proxy.yaml", "Deployment", "proxy").Spec.Template.Spec.Containers[0]
	image := endpoint{
		matches(t, "../Dockerfile", `HEALTHCHECK .*http://127.0.0.1:(\d+)/`)[0],
		matches(t, "../Dockerfile", `HEALTHCHECK .*http://127.0.0.1:\d+(/\w+)`)[0],
	}
	tests := map[string]struct {
		config      string
		live, ready endpoint
		metrics     string
		status      int
		keyed       bool // clients need an API key
	}{
		"docker": {dockerConfig, image, endpoint{"8000", "/health"}, "9180", http.StatusServiceUnavailable, true},
		"kubernetes": {
			kubernetesConfig, pod.endpoint(t, pod.Live), pod.endpoint(t, pod.Ready),
			pod.port(t, readManifest(t, "podmonitor.yaml", "PodMonitor", "proxy").Spec.PodMonitors[0].Port), http.StatusOK, false,
		},
		"kubernetes, the image's own check": {kubernetesConfig, image, pod.endpoint(t, pod.Ready), "9180", http.StatusOK, false},
		"systemd":                           {productionConfig, image, endpoint{"443", "/health"}, "9180", http.StatusServiceUnavailable, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ports := runWithoutEngines(t, adapt(t, test.config))
			ask := func(e endpoint) (int, string) { return askWith(t, ports, e, "key") }

			require.Eventually(t, func() bool { // probes have no key
				status, _ := askWith(t, ports, test.ready, "")
				return status == test.status
			}, 30*time.Second, 20*time.Millisecond, "the status of %s is not %d", test.ready, test.status)
			status, _ := ask(endpoint{test.ready.port, "/v1/models"})
			assert.Equal(t, http.StatusServiceUnavailable, status)
			if test.keyed {
				status, _ = askWith(t, ports, endpoint{test.ready.port, "/v1/models"}, "")
				assert.Equal(t, http.StatusUnauthorized, status)
			}

			status, _ = ask(test.live)
			assert.Equal(t, http.StatusOK, status)
			status, body := ask(endpoint{test.metrics, "/metrics"})
			assert.Equal(t, http.StatusOK, status)
			assert.Contains(t, body, "go_goroutines")
			for _, path := range []string{"/", "/v1/models", "/config/"} {
				status, _ = ask(endpoint{test.metrics, path})
				assert.Equal(t, http.StatusNotFound, status, path)
			}
			status, _ = ask(endpoint{test.ready.port, "/metrics"})
			assert.Equal(t, http.StatusNotFound, status)
		})
	}
}

// Where the admin endpoint is not isolated by a container, operators use it on the machine itself.
func TestOperatorsAreLocal(t *testing.T) {
	t.Parallel()
	var listen []any
	for _, server := range entry(adapt(t, productionConfig)).at("apps", "http", "servers").(map[string]any) {
		listen = append(listen, server.(map[string]any)["listen"].([]any)...)
	}
	assert.ElementsMatch(t, []any{":443", "127.0.0.1:9180"}, listen)
}

// askWith sends a GET request with an API key.
func askWith(t *testing.T, ports map[string]string, e endpoint, key string) (status int, body string) {
	r, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:"+ports[e.port]+e.path, nil)
	require.NoError(t, err)
	r.Host = "api.example.com"
	r.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// runWithoutEngines runs Caddy with a configuration, on free ports of the loopback
// interface and with pools whose addresses refuse connections. It returns the real port for
// each port of the configuration.
func runWithoutEngines(t *testing.T, config map[string]any) map[string]string {
	config["admin"] = map[string]any{"disabled": true, "config": map[string]any{"persist": false}}
	ports := make(map[string]string)
	for _, server := range entry(config).at("apps", "http", "servers").(map[string]any) {
		server := server.(map[string]any)
		server["automatic_https"] = map[string]any{"disable": true}
		for i, listen := range server["listen"].([]any) {
			_, port, err := net.SplitHostPort(listen.(string))
			require.NoError(t, err)
			ports[port] = strconv.Itoa(freePort(t))
			server["listen"].([]any)[i] = "127.0.0.1:" + ports[port]
		}
	}
	withoutEngines(config)

	dir := t.TempDir()
	b, err := json.Marshal(config)
	require.NoError(t, err)
	file := filepath.Join(dir, "caddy.json")
	require.NoError(t, os.WriteFile(file, b, 0o600))
	cmd := exec.Command(binary, "run", "--config", file)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "EPD_API_KEY=key")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if assert.NoError(t, cmd.Wait()); t.Failed() {
			t.Log(log.String())
		}
	})
	for _, port := range ports {
		require.Eventually(t, func() bool {
			conn, err := net.Dial("tcp", "127.0.0.1:"+port)
			return err == nil && conn.Close() == nil
		}, 60*time.Second, 20*time.Millisecond, "Caddy does not serve")
	}
	return ports
}

// withoutEngines replaces the addresses of pools by ones where nobody listens, and
// makes health checks frequent.
func withoutEngines(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			withoutEngines(e)
		}
	case map[string]any:
		if dynamic, ok := v["dynamic_upstreams"].(map[string]any); ok {
			dynamic["name"], dynamic["port"] = "localhost", "1"
		}
		if v["upstreams"] != nil {
			v["upstreams"] = []any{map[string]any{"dial": "127.0.0.1:1"}}
			v["health_checks"] = map[string]any{"active": map[string]any{"interval": "50ms"}}
		}
		for _, e := range v {
			withoutEngines(e)
		}
	}
}

// The two examples run the same engines.
func TestEnginesOfExamples(t *testing.T) {
	t.Parallel()
	services := readCompose(t).Services
	image := matches(t, "../examples/kubernetes/kustomization.yaml", `name: vllm/vllm-openai\n +newTag: (\S+)`)[0]
	for _, role := range []string{"encode", "prefill", "decode"} {
		args := readManifest(t, "engines.yaml", "Deployment", role).Spec.Template.Spec.Containers[0].Args
		command := services[role].Command
		assert.Equal(t, "${MODEL:-"+args[0]+"}", command[0], role)
		assert.Equal(t, args[1:], command[1:], role)
		assert.Equal(t, "vllm/vllm-openai:${VLLM_TAG:-"+image+"}", services[role].Image, role)
	}
}

// Every build uses a Go version that go.mod accepts.
func TestGoVersions(t *testing.T) {
	t.Parallel()
	needed := version.Lang("go" + matches(t, "../go.mod", `(?m)^go (\S+)`)[0])
	versions := matches(t, "../Dockerfile", `golang:([\d.]+)`)
	for _, workflow := range []string{"ci", "release"} {
		versions = append(versions, matches(t, "../.github/workflows/"+workflow+".yml", `go-version: "(\S+)"`)...)
	}
	for _, v := range versions {
		assert.GreaterOrEqual(t, version.Compare("go"+v, needed), 0, v)
	}
}
