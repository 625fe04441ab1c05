//go:build unix

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// buildCaddy builds the Caddy under test.
func buildCaddy(ctx context.Context, root, path string) error {
	say("building Caddy")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/caddy")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, out)
	}
	return nil
}

// proxy is a running Caddy with epd_proxy.
type proxy struct {
	*engine // started and stopped in the same way
	client  *http.Client
	storage string // of its CA
}

// block is the configuration of epd_proxy. Each pool has the same options.
func block(encode, prefill, decode []string, each, options string) string {
	var b strings.Builder
	for _, pool := range []struct {
		name  string
		addrs []string
	}{{"encode", encode}, {"prefill", prefill}, {"decode", decode}} {
		if len(pool.addrs) > 0 {
			fmt.Fprintf(&b, "%s %s {\n%s\n}\n", pool.name, strings.Join(pool.addrs, " "), each)
		}
	}
	return b.String() + options
}

// caddyEngine prepares a Caddy with this block of epd_proxy at an address. Its data is in dir.
func (s *suite) caddyEngine(dir, site, block string) (*engine, error) {
	tls := ""
	if strings.HasPrefix(site, "https:") {
		tls = "tls internal"
	}
	config := filepath.Join(dir, "Caddyfile")
	err := os.WriteFile(config, fmt.Appendf(nil, `{
	admin off
	skip_install_trust
	auto_https disable_redirects
	storage file_system "%s"
	grace_period 2s
}
%s {
	bind 127.0.0.1
	%s
	log
	epd_proxy {
		%s
	}
}
`, storage(dir), site, tls, strings.ReplaceAll(strings.TrimSpace(block), "\n", "\n\t\t")), 0o644)
	return &engine{
		name: "Caddy",
		args: []string{s.caddy, "run", "--config", config, "--adapter", "caddyfile"},
		env:  []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir},
		log:  filepath.Join(dir, "caddy.log"),
	}, err
}

// storage is the directory with Caddy's CA.
func storage(dir string) string { return filepath.Join(dir, "caddy") }

// startProxy runs Caddy over HTTPS.
func (s *suite) startProxy(ctx context.Context, dir, block string) (*proxy, error) {
	port, err := fakevllm.FreePort()
	if err != nil {
		return nil, err
	}
	addr := "localhost:" + strconv.Itoa(port)
	e, err := s.caddyEngine(dir, "https://"+addr, block)
	if err != nil {
		return nil, err
	}
	e.addr = addr
	p := &proxy{engine: e, storage: storage(dir)}
	if err := p.start(); err != nil {
		return nil, err
	}
	if err := p.serves(ctx); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// url is the URL for clients.
func (p *proxy) url() string { return "https://" + p.addr }

// serves waits until Caddy serves requests, and makes a client that trusts its CA.
func (p *proxy) serves(ctx context.Context) error {
	return until(ctx, time.Minute, p.running(func(ctx context.Context) bool {
		roots := x509.NewCertPool()
		pem, err := os.ReadFile(filepath.Join(p.storage, "pki/authorities/local/root.crt"))
		if err != nil || !roots.AppendCertsFromPEM(pem) {
			return false
		}
		config := &tls.Config{RootCAs: roots}
		conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", p.addr)
		if err != nil {
			return false
		}
		p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
		return conn.Close() == nil
	}))
}

// stop stops Caddy as a service manager does.
func (p *proxy) stop() {
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
	p.engine.stop()
}
