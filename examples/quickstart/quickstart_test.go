package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// The tests do not run in parallel: a process has only one Caddy.

const (
	up       = "Ctrl-C ends it.\n"
	patience = 30 * time.Second

	// way matches the line of a request.
	way = `(?m)^POST /v1/chat/completions 200 ok, encode \d+\.\d ms encoder-[12], ` +
		`prefill \d+\.\d ms prefill-1, decode \d+\.\d ms decoder-[12], total \d+\.\d ms$`
)

func TestQuickstart(t *testing.T) {
	p := start(t)
	text := p.await(t, regexp.QuoteMeta(up), 1)

	assert.Contains(t, text, "The engines are FAKE: no GPU, no model.")
	assert.Regexp(t, `(?m)^	epd_proxy \{
		encode 127\.0\.0\.1:\d+ 127\.0\.0\.1:\d+
		prefill 127\.0\.0\.1:\d+
		decode 127\.0\.0\.1:\d+ 127\.0\.0\.1:\d+
	\}$`, text)
	want, err := fakevllm.Answer([]byte(body()))
	require.NoError(t, err)
	assert.Contains(t, text, "\n  "+want+"\n")
	assert.Regexp(t, `(?m)^  encode +\d+\.\d ms   encoder-[12] \(127\.0\.0\.1:\d+\)
  prefill +\d+\.\d ms   prefill-1 \(127\.0\.0\.1:\d+\)
  decode +\d+\.\d ms   decoder-[12] \(127\.0\.0\.1:\d+\)
  total +\d+\.\d ms$`, text)

	command := commandLine(t, text)
	t.Run("the request of the curl line", func(t *testing.T) {
		assert.Equal(t, want, answerOf(t, send(t, command)))
		p.await(t, way, 1)
	})
	t.Run("curl", func(t *testing.T) {
		if _, err := exec.LookPath("curl"); err != nil {
			t.Skip("curl is not installed")
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		shell := exec.CommandContext(ctx, "sh", "-c", command)
		shell.Env = append(os.Environ(), "NO_PROXY=localhost", "no_proxy=localhost")
		answer, err := shell.Output()
		require.NoError(t, err)
		assert.Equal(t, want, answerOf(t, answer))
		p.await(t, way, 2)
	})
	for path, want := range map[string]string{"/epd/status": `"encode"`, "/metrics": "caddy_epd_requests_total"} {
		t.Run(path, func(t *testing.T) {
			url := regexp.MustCompile(`http://localhost:\d+` + path + `\b`).FindString(text)
			require.NotEmpty(t, url)
			answer, err := http.Get(url)
			require.NoError(t, err)
			defer func() { _ = answer.Body.Close() }()
			b, err := io.ReadAll(answer.Body)
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, answer.StatusCode)
			assert.Contains(t, string(b), want)
		})
	}
	p.stop(t)
}

func TestUsualPortsTaken(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run("HTTPS over "+network, func(t *testing.T) {
			for _, port := range []int{8001, 8002, 8101, 8201, 8202} {
				take(t, "tcp", port)
			}
			take(t, "tcp", 2020)
			take(t, network, 8443)
			p := start(t)
			text := p.await(t, regexp.QuoteMeta(up), 1)
			assert.NotRegexp(t, `:(8001|8002|8101|8201|8202|8443|2020)\b`, text)
			send(t, commandLine(t, text))
			p.await(t, way, 1)
			p.stop(t)
		})
	}
}

func TestStops(t *testing.T) {
	for name, when := range map[string]string{
		"during start-up":   "FAKE",
		"during the stream": "größe",
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			p.await(t, when, 1)
			p.stop(t)
		})
	}
	t.Run("while others stream", func(t *testing.T) {
		p := start(t)
		command := commandLine(t, p.await(t, regexp.QuoteMeta(up), 1))
		answer := open(t, command)
		p.stop(t)
		rest, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		answerOf(t, rest)
		assert.Regexp(t, way, p.text())
	})
}

func TestFailsWithOneLine(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	err := run(t.Context(), io.Discard)
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.NotContains(t, err.Error(), "\n")
}

// program is a run of the program.
type program struct {
	dirs   []string // must be empty afterwards
	cancel context.CancelFunc
	done   chan error

	mu   sync.Mutex // guards what follows
	out  bytes.Buffer
	more chan struct{} // closed and replaced when there is more
}

func start(t *testing.T) *program {
	ctx, cancel := context.WithCancel(t.Context())
	p := &program{cancel: cancel, done: make(chan error, 1), more: make(chan struct{})}
	for _, name := range []string{"TMPDIR", "HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		dir := t.TempDir()
		t.Setenv(name, dir)
		p.dirs = append(p.dirs, dir)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.done <- run(ctx, p)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return p
}

// Write implements io.Writer.
func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.more)
	p.more = make(chan struct{})
	return p.out.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// await returns the output of the program when the pattern has this many matches in it.
func (p *program) await(t *testing.T, pattern string, matches int) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.After(patience)
	for {
		p.mu.Lock()
		text, more := p.out.String(), p.more
		p.mu.Unlock()
		if len(re.FindAllString(text, -1)) >= matches {
			return text
		}
		select {
		case <-more:
		case err := <-p.done:
			require.FailNow(t, "the program has ended", "%v\n%s", err, text)
		case <-timeout:
			require.FailNow(t, "no such output", "%s\n%s", pattern, text)
		}
	}
}

// stop stops the program, and asserts that it leaves nothing behind.
func (p *program) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	select {
	case err := <-p.done:
		require.NoError(t, err)
	case <-time.After(patience):
		require.FailNow(t, "the program does not end", p.text())
	}
	for _, dir := range p.dirs {
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

// commandLine is the printed curl command.
func commandLine(t *testing.T, text string) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^curl (.*\\\n)*.*$`).FindString(text)
	require.NotEmpty(t, line)
	return line
}

// open sends the request of the curl command.
func open(t *testing.T, command string) *http.Response {
	t.Helper()
	part := func(pattern string) string {
		found := regexp.MustCompile(pattern).FindStringSubmatch(command)
		require.Len(t, found, 2, pattern)
		return found[1]
	}
	pem, err := os.ReadFile(part(`--cacert '(.*?)'`))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(pem))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, part(`(https://\S+)`), strings.NewReader(part(`-d '(.*)'`)))
	require.NoError(t, err)
	r.Header.Set("Content-Type", part(`-H 'Content-Type: (.*?)'`))
	answer, err := (&http.Client{Transport: transport, Timeout: patience}).Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = answer.Body.Close() })
	require.Equal(t, http.StatusOK, answer.StatusCode)
	return answer
}

func send(t *testing.T, command string) []byte {
	t.Helper()
	answer, err := io.ReadAll(open(t, command).Body)
	require.NoError(t, err)
	return answer
}

func answerOf(t *testing.T, stream []byte) string {
	t.Helper()
	text, err := fakevllm.Text(stream, true)
	require.NoError(t, err)
	return text
}

// take occupies a port. If that fails, another process has it.
func take(t *testing.T, network string, port int) {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	var taken io.Closer
	var err error
	if network == "udp" {
		taken, err = net.ListenPacket("udp", addr)
	} else {
		taken, err = net.Listen("tcp", addr)
	}
	if err == nil {
		t.Cleanup(func() { _ = taken.Close() })
	}
}
