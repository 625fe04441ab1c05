package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// binary is the Caddy under test. All instances share storage, so that a CA is made
// only once.
var binary, storage string

func TestMain(m *testing.M) {
	flag.Parse()
	if !isSet("test.parallel") { // most tests are waiting most of the time
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "epd_proxy")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary, storage = filepath.Join(dir, "caddy"), filepath.Join(dir, "storage")
		build := exec.Command("go", append([]string{"build", "-o", binary}, append(buildFlags, "../cmd/caddy")...)...)
		if out, err := build.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("building Caddy: %v\n%s", err, out))
		}
		return m.Run()
	}())
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// starting is held until a Caddy serves: two that start with an empty storage would
// both make a CA.
var starting sync.Mutex

// caddy is a running Caddy.
type caddy struct {
	URL    string // https://localhost:port, or http
	Client *http.Client
	addr   string
	roots  *x509.CertPool
	config string // the Caddyfile's path
	cmd    *exec.Cmd
	log    *logBook
	stop   func()
	idle   usage // right after the start

	mu      sync.Mutex
	clients []*http.Transport
}

// startCaddy runs Caddy with this block of epd_proxy.
func startCaddy(t testing.TB, block string) *caddy {
	t.Helper()
	return startCaddyWith(t, "", block)
}

// startCaddyWith is startCaddy with a global option. A reload could set it too, but a connection made
// right after a reload may still reach the old server.
func startCaddyWith(t testing.TB, global, block string) *caddy {
	t.Helper()
	return start(t, "https", global, "epd_proxy {\n"+block+"\n}")
}

// startSite runs Caddy with these directives, over HTTPS.
func startSite(t testing.TB, directives string) *caddy {
	t.Helper()
	return start(t, "https", "", directives)
}

func start(t testing.TB, scheme, global, directives string) *caddy {
	t.Helper()
	starting.Lock()
	defer starting.Unlock()
	port := freePort(t)
	dir := t.TempDir()
	c := &caddy{
		URL:    fmt.Sprintf("%s://localhost:%d", scheme, port),
		addr:   fmt.Sprintf("127.0.0.1:%d", port),
		config: filepath.Join(dir, "Caddyfile"),
		log:    &logBook{changed: make(chan struct{})},
	}
	c.configure(t, dir, global, directives)
	c.cmd = exec.Command(binary, "run", "--config", c.config, "--adapter", "caddyfile")
	c.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "GORACE=halt_on_error=1")
	stderr, err := c.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.log.read(bufio.NewReader(stderr))
	}()
	c.stop = sync.OnceFunc(func() {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		<-read
		assert.NoError(t, c.cmd.Wait(), "Caddy did not end well")
		assert.Empty(t, c.log.rest(), "Caddy wrote what is no log entry")
		if t.Failed() {
			c.log.dump(t)
		}
	})
	t.Cleanup(c.stop)

	require.Eventually(t, func() bool {
		if scheme == "http" {
			conn, err := net.Dial("tcp", c.addr)
			return err == nil && conn.Close() == nil
		}
		c.roots = x509.NewCertPool()
		pem, err := os.ReadFile(filepath.Join(storage, "pki/authorities/local/root.crt"))
		if err != nil || !c.roots.AppendCertsFromPEM(pem) {
			return false
		}
		conn, err := tls.Dial("tcp", c.addr, &tls.Config{RootCAs: c.roots, ServerName: "localhost"})
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, 60*time.Second, 20*time.Millisecond, "Caddy does not serve")
	c.Client = c.client(t, true)
	c.idle = c.usage(t)
	return c
}

// configure writes the Caddyfile, with a global option and the directives of the site.
func (c *caddy) configure(t testing.TB, dir, global, directives string) {
	tls := "tls internal"
	if strings.HasPrefix(c.URL, "http://") {
		tls = ""
	}
	admin := "admin unix//" + dir + "/admin.sock"
	if strings.Contains(global, "admin ") {
		admin = ""
	}
	config := fmt.Sprintf(`{
	%s
	skip_install_trust
	auto_https disable_redirects
	storage file_system %s
	grace_period 2s
	%s
}
%s {
	bind 127.0.0.1
	%s
	log
	%s
}
`, admin, storage, global, c.URL, tls, directives)
	require.NoError(t, os.WriteFile(c.config, []byte(config), 0o600))
}

// reload reloads Caddy with another block of epd_proxy.
func (c *caddy) reload(t *testing.T, block string) {
	t.Helper()
	c.reloadWith(t, "", block)
}

// reloadWith is reload with a global option.
func (c *caddy) reloadWith(t *testing.T, global, block string) {
	t.Helper()
	dir := filepath.Dir(c.config)
	c.configure(t, dir, global, "epd_proxy {\n"+block+"\n}")
	cmd := exec.Command(binary, "reload", "--config", c.config, "--adapter", "caddyfile", "--address", "unix/"+dir+"/admin.sock", "--force")
	cmd.Env = c.cmd.Env
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// client returns a client that uses either HTTP/2 or HTTP/1.1.
func (c *caddy) client(t testing.TB, http2 bool) *http.Client {
	config := &tls.Config{RootCAs: c.roots, ServerName: "localhost"}
	if http2 {
		config.NextProtos = []string{"h2"}
	}
	tr := &http.Transport{
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialAgain(ctx, network, c.addr, config)
		},
		TLSClientConfig:     config,
		ForceAttemptHTTP2:   http2,
		MaxIdleConnsPerHost: 128,
		DisableCompression:  true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients = append(c.clients, tr)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// dialAgain dials, and once more if the connection was reset before it was used:
// a reload closes the old socket, and Linux resets connections that were not accepted yet.
func dialAgain(ctx context.Context, network, addr string, config *tls.Config) (net.Conn, error) {
	d := &tls.Dialer{Config: config}
	conn, err := d.DialContext(ctx, network, addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return d.DialContext(ctx, network, addr)
	}
	return conn, err
}

// hangUp closes the clients' idle connections.
func (c *caddy) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, tr := range c.clients {
		tr.CloseIdleConnections()
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := fakevllm.FreePort()
	require.NoError(t, err)
	return port
}

// entry is one entry of Caddy's log.
type entry map[string]any

// str returns the string at a path of names.
func (e entry) str(path ...string) string {
	s, _ := e.at(path...).(string)
	return s
}

func (e entry) at(path ...string) any {
	var v any = map[string]any(e)
	for _, name := range path {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// logBook collects what Caddy writes to stderr.
type logBook struct {
	mu      sync.Mutex
	raw     []string
	entries []entry
	other   []string
	changed chan struct{} // closed and replaced when there are new entries
}

func (l *logBook) read(r *bufio.Reader) {
	for {
		line, err := r.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			l.add(line)
		}
		if err != nil {
			return
		}
	}
}

func (l *logBook) add(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw = append(l.raw, string(line))
	var e entry
	if json.Unmarshal(line, &e) == nil {
		l.entries = append(l.entries, e)
	} else {
		l.other = append(l.other, string(line))
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *logBook) find(match func(entry) bool) (found []entry, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if match(e) {
			found = append(found, e)
		}
	}
	return found, l.changed
}

// rest returns lines that are not JSON: race reports and panics.
func (l *logBook) rest() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.other
}

// text returns all that was written.
func (l *logBook) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.raw, "\n")
}

func (l *logBook) dump(t testing.TB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := slices.DeleteFunc(slices.Clone(l.raw), func(line string) bool { return strings.Contains(line, leakCheck) })
	for _, line := range lines[max(0, len(lines)-40):] {
		t.Log(line[:min(len(line), 2000)])
	}
}

// entries waits until at least n entries match.
func (c *caddy) entries(t *testing.T, n int, match func(entry) bool) []entry {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		found, changed := c.log.find(match)
		if len(found) >= n {
			return found
		}
		select {
		case <-changed:
		case <-timeout:
			require.FailNowf(t, "missing log entries", "have %d, want %d", len(found), n)
		}
	}
}

// access waits for the access log entry of a request.
func (c *caddy) access(t *testing.T, id string) entry {
	t.Helper()
	return c.entries(t, 1, func(e entry) bool {
		return e.str("logger") == "http.log.access" && e.str("epd", "request_id") == id
	})[0]
}

// failures returns the handler's entries for a request: the reasons of failures.
func (c *caddy) failures(id string) []entry {
	found, _ := c.log.find(func(e entry) bool {
		return isOurs(e) && e.str("request_id") == id
	})
	return found
}

// failure waits for the handler's entry for a request.
func (c *caddy) failure(t *testing.T, id string) entry {
	t.Helper()
	return c.entries(t, 1, func(e entry) bool {
		return isOurs(e) && e.str("request_id") == id
	})[0]
}

// lines returns all log entries of the handler and its pools.
func (c *caddy) lines() []entry {
	found, _ := c.log.find(isOurs)
	return found
}

// isOurs reports whether an entry is the handler's or one of its pools'.
func isOurs(e entry) bool {
	switch e.str("logger") {
	case "http.handlers.epd_proxy", "http.handlers.epd_proxy.encode", "http.handlers.epd_proxy.prefill", "http.handlers.epd_proxy.decode":
		return true
	}
	return false
}
