package integration

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// command is a command of the Caddy under test, with its own home directory.
func command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	home := t.TempDir()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home, "GORACE=halt_on_error=1")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// run runs the command to its end.
func run(t *testing.T, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(t, env, args...)
	var messages strings.Builder
	cmd.Stderr = &messages
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), messages.String(), exit.ExitCode()
	}
	require.NoError(t, err)
	return string(out), messages.String(), 0
}

// words are the lines of a text, with single spaces.
func words(text string) (lines []string) {
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

func TestCheck(t *testing.T) {
	t.Parallel()
	withKey := func(o *fakevllm.Options) { o.APIKey = "secret" }
	for name, tc := range map[string]struct {
		change func(*fakevllm.Options)
		after  func(*engines)
		block  []string
		args   []string
		env    []string
		want   map[string]string // lines about engines that are not healthy
		more   []string          // lines after those of the engines
	}{
		"all well":              {},
		"one is dead":           {after: func(e *engines) { e.encode[1].Close() }, want: map[string]string{"encode1": "connection refused: is it running, and at this address and port?"}},
		"a key is needed":       {change: withKey, want: allOf("answers 401: engines have --api-key; give --api-key here, or set VLLM_API_KEY")},
		"the right key":         {change: withKey, args: []string{"--api-key", "secret"}},
		"the environment's key": {change: withKey, env: []string{"VLLM_API_KEY=secret"}},
		"the pools' key":        {change: withKey, block: []string{`encode header_up Authorization "Bearer secret"`, `prefill header_up Authorization "Bearer secret"`, `decode header_up Authorization "Bearer secret"`}},
		"another key":           {change: withKey, args: []string{"--api-key", "other"}, env: []string{"VLLM_API_KEY=secret"}, want: allOf("answers 401: it has another --api-key")},
		"not healthy":           {after: func(e *engines) { e.decode[0].SetFault(fakevllm.Fault{Kind: fakevllm.Status, Code: 503}) }, want: map[string]string{"decode0": "/v1/models answers 503: is that vLLM, and has it started well?"}},
		"cut off":               {after: func(e *engines) { e.prefill[0].SetFault(fakevllm.Fault{Kind: fakevllm.Garbage}) }, want: map[string]string{"prefill0": "/v1/models lists no models: is that vLLM's API server?"}},
		"hangs up":              {after: func(e *engines) { e.prefill[0].SetFault(fakevllm.Fault{Kind: fakevllm.CutBefore}) }, want: map[string]string{"prefill0": "closes the connection before it has answered: does it want https://?"}},
		"no TLS":                {block: []string{"prefill transport http {\ntls\n}"}, want: map[string]string{"prefill0": "does not speak TLS: write http://"}},
		"no connector": {change: func(o *fakevllm.Options) { o.NoHandOver = true }, want: map[string]string{
			"prefill0": "hands no KV blocks over: does it have --kv-transfer-config, with a connector that answers with kv_transfer_params?",
		}},
		"mixed": {change: func(o *fakevllm.Options) {
			switch o.Name {
			case "encode1":
				o.Model = "other"
			case "prefill0":
				o.Model = "third"
			case "decode1":
				o.Version = "0.12.0"
			}
		}, want: map[string]string{"encode1": "up, vLLM 0.11.1, serves other", "prefill0": "up, vLLM 0.11.1, serves third", "decode1": "up, vLLM 0.12.0, serves fake"},
			more: []string{
				"engines serve different models: fake ($encode0 $decode0 $decode1), other ($encode1), third ($prefill0)",
				"engines run different versions of vLLM: 0.11.1 ($encode0 $encode1 $prefill0 $decode0), 0.12.0 ($decode1)",
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			change := tc.change
			if change == nil {
				change = func(*fakevllm.Options) {}
			}
			e := startEngines(t, 2, 1, 2, change)
			if tc.after != nil {
				tc.after(e)
			}
			out, log, status := run(t, tc.env, append([]string{"epd-check", "--config", site(t, e.block(tc.block...))}, tc.args...)...)

			var want, addresses []string
			for _, engine := range e.all() {
				said, ok := tc.want[engine.Name()]
				if !ok {
					said = "up, vLLM 0.11.1, serves fake"
				}
				want = append(want, fmt.Sprintf("%s %s %s", strings.TrimRight(engine.Name(), "01"), engine.Addr(), said))
				addresses = append(addresses, "$"+engine.Name(), engine.Addr())
			}
			for _, line := range tc.more {
				want = append(want, strings.NewReplacer(addresses...).Replace(line))
			}
			if len(tc.want) == 0 {
				want = append(want, "all is well")
			}
			assert.Equal(t, want, words(out), log)
			assert.Equal(t, len(tc.want) > 0, status == 1, "exit status %d", status)
		})
	}
}

// allOf returns the same line for every engine.
func allOf(said string) map[string]string {
	return map[string]string{"encode0": said, "encode1": said, "prefill0": said, "decode0": said, "decode1": said}
}

// site writes a Caddyfile with this block of epd_proxy and returns its path.
func site(t *testing.T, block string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	config := fmt.Sprintf("{\n\tadmin off\n}\nhttp://127.0.0.1:%d {\n\troute /x/* {\n\t\thandle_path /x/* {\n\t\t\tepd_proxy {\n%s\n}\n}\n}\n}\n", freePort(t), block)
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	return file
}

func TestCheckOfSeveral(t *testing.T) {
	t.Parallel()
	a, b := startEngines(t, 1, 0, 1), startEngines(t, 1, 0, 1)
	file := filepath.Join(t.TempDir(), "two.Caddyfile")
	config := fmt.Sprintf(":%d {\nepd_proxy {\n%s}\n}\n:%d {\nepd_proxy {\n%s}\n}\n", freePort(t), a.block(), freePort(t), b.block())
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	out, log, status := run(t, nil, "epd-check", "--config", file)
	assert.Zero(t, status, log)
	lines := words(out)
	require.Len(t, lines, 7)
	assert.Equal(t, []string{"epd_proxy 1 of 2", "epd_proxy 2 of 2", "all is well"}, []string{lines[0], lines[3], lines[6]})
	for _, engine := range append(a.all(), b.all()...) {
		assert.Contains(t, out, engine.Addr())
	}
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "x.Caddyfile")
	require.NoError(t, os.WriteFile(empty, []byte(":80\nrespond hello\n"), 0o600))
	bad := filepath.Join(t.TempDir(), "bad.json")
	require.NoError(t, os.WriteFile(bad, []byte(`{"apps":{"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"epd_proxy"}]}]}}}}}`), 0o600))
	for file, want := range map[string]string{
		empty:          "there is no epd_proxy in " + empty,
		bad:            "there is no encode pool",
		"nowhere.json": "no such file or directory",
	} {
		out, log, status := run(t, nil, "epd-check", "--config", file)
		assert.Equal(t, 1, status)
		assert.Empty(t, out)
		assert.Contains(t, log, want)
	}
}

// serving starts epd-proxy with these arguments, and stops it at the end of the test.
func serving(t *testing.T, address string, args ...string) *logBook {
	t.Helper()
	cmd := command(t, nil, append([]string{"epd-proxy"}, args...)...)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	log := &logBook{changed: make(chan struct{})}
	read := make(chan struct{})
	go func() {
		defer close(read)
		log.read(bufio.NewReader(stderr))
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-read
		assert.NoError(t, cmd.Wait(), "epd-proxy exited with an error")
		assert.Empty(t, log.rest())
	})
	require.Eventually(t, func() bool {
		found, _ := log.find(func(e entry) bool { return e.str("msg") == "epd_proxy is serving" && e.str("address") == address })
		return len(found) == 1
	}, 30*time.Second, 10*time.Millisecond, "no line with the address %s", address)
	return log
}

// In a script that starts vLLM's proxy, only the program has to be replaced.
func TestProxyWithTheFlagsOfVLLM(t *testing.T) {
	t.Parallel()
	for name, prefill := range map[string]int{"E+PD": 0, "E+P+D": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 2, prefill, 1)
			urls := func(list []*fakevllm.Engine) string {
				var all []string
				for _, engine := range list {
					all = append(all, engine.URL())
				}
				return strings.Join(all, ",")
			}
			port := freePort(t)
			c := &caddy{URL: fmt.Sprintf("http://127.0.0.1:%d", port), Client: &http.Client{Timeout: time.Minute}}
			t.Cleanup(c.Client.CloseIdleConnections)
			serving(t, c.URL, "--host", "127.0.0.1", "--port", strconv.Itoa(port),
				"--encode-servers-urls", urls(e.encode),
				"--prefill-servers-urls", cmp.Or(urls(e.prefill), "disable"),
				"--decode-servers-urls", urls(e.decode))

			for _, body := range []string{typical["every kind"].body, stream(typical["every kind"].body)} {
				assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
			}
			e.assertRequests(t, 8, 2*prefill, 2)
			e.assertContract(t)
			assert.Equal(t, http.StatusNotFound, c.do(t, http.MethodPost, "/start_profile", "{}").StatusCode)
		})
	}
}

func TestProxyWithItsOwnFlags(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 0, 1, profiling)
	port := freePort(t)
	c := &caddy{URL: fmt.Sprintf("http://localhost:%d", port), Client: &http.Client{Timeout: time.Minute}}
	t.Cleanup(c.Client.CloseIdleConnections)
	c.log = serving(t, fmt.Sprintf("http://:%d", port), "--listen", fmt.Sprintf(":%d", port), "--profiling", "--access-log", "--debug",
		"--encode", e.encode[0].Addr()+", "+e.encode[1].Addr(), "--decode", e.decode[0].Addr())
	body := typical["five images"].body
	r := c.do(t, http.MethodPost, chatPath, body)
	assertAnswer(t, body, r)
	assert.Equal(t, "ok", c.access(t, r.id()).str("epd", "outcome"))
	r = c.do(t, http.MethodPost, "/start_profile", "{}")
	assert.Equal(t, map[string][]string{"encode": {"encode#1 200 ok", "encode#2 200 ok"}, "decode": {"decode#1 200 ok"}}, said(t, r))
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	for why, args := range map[string][]string{
		"there is no decode pool":         {"epd-proxy", "--encode", "e1:8001"},
		"unexpected argument 'e2:8001'":   {"epd-proxy", "--encode", "e1:8001", "e2:8001", "--decode", "d1:8003"},
		`unknown command "Caddyfile" for`: {"epd-check", "Caddyfile"},
	} {
		_, log, status := run(t, nil, args...)
		assert.Equal(t, 1, status, why)
		assert.Contains(t, log, why)
	}
}

// behind serves an engine below a path prefix only. It returns the URL.
func behind(t *testing.T, path string, engine *fakevllm.Engine) string {
	t.Helper()
	to, err := url.Parse(engine.URL())
	require.NoError(t, err)
	server := httptest.NewServer(http.StripPrefix(path, httputil.NewSingleHostReverseProxy(to)))
	t.Cleanup(server.Close)
	return server.URL + path
}

// Engines can be behind a path prefix: requests, health checks and profiling use it.
func TestProxyWithPaths(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 0, 1, profiling)
	port := freePort(t)
	c := &caddy{URL: fmt.Sprintf("http://127.0.0.1:%d", port), Client: &http.Client{Timeout: time.Minute}}
	t.Cleanup(c.Client.CloseIdleConnections)
	serving(t, c.URL, "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--profiling",
		"--encode-servers-urls", behind(t, "/e", e.encode[0])+","+behind(t, "/e", e.encode[1])+"/",
		"--decode-servers-urls", behind(t, "/vllm/d", e.decode[0]))

	for _, body := range []string{typical["five images"].body, stream(typical["five images"].body)} {
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
	}
	assert.Equal(t, http.StatusOK, c.do(t, http.MethodGet, "/v1/models", "").StatusCode)
	for _, engine := range e.all() {
		assert.Eventually(t, func() bool { return engine.HealthChecks() > 0 }, waitLong, tick)
	}
	r := c.do(t, http.MethodPost, "/start_profile", "{}")
	assert.Equal(t, map[string][]string{"encode": {"encode#1 200 ok", "encode#2 200 ok"}, "decode": {"decode#1 200 ok"}}, said(t, r))
	e.assertContract(t)
}

func TestCheckBelowPaths(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	var block strings.Builder
	for i, stage := range []string{"encode", "prefill", "decode"} {
		engine := e.all()[i]
		address, _ := strings.CutPrefix(behind(t, "/vllm", engine), "http://")
		address, _ = strings.CutSuffix(address, "/vllm")
		fmt.Fprintf(&block, "%s %s {\nrewrite /vllm{uri}\nhealth_uri /vllm/health\n}\n", stage, address)
	}
	out, log, status := run(t, nil, "epd-check", "--config", site(t, block.String()))
	assert.Zero(t, status, log)
	assert.Contains(t, out, "all is well")
}
