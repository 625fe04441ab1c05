package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging" // not modules/standard, which takes longer to compile
	_ "github.com/caddyserver/caddy/v2/modules/metrics"

	_ "github.com/caddy-epd/caddy-epd/epdhandler" // epd_proxy
)

// caddyfile has verbs for the port of the admin endpoint, which accepts browsers, the storage,
// the site's port, the address for the access log, and the block of epd_proxy. Most options
// make sure that this Caddy leaves nothing behind; a real Caddyfile needs only a domain name
// and the block.
const caddyfile = `{
	admin 127.0.0.1:%[1]d {
		origins localhost:%[1]d 127.0.0.1:%[1]d ""
	}
	persist_config off
	storage file_system %[2]q
	storage_clean_interval off
	skip_install_trust
	auto_https disable_redirects
	grace_period 3s
	log {
		level WARN
		exclude admin
	}
}

https://localhost:%[3]d {
	bind 127.0.0.1
	tls internal
	log {
		output net %[4]s
	}
%[5]s}
`

// proxy is the running Caddy.
type proxy struct {
	url     string
	admin   string // the URL of Caddy's admin endpoint
	block   string // of epd_proxy, in the Caddyfile
	root    string // the file with the certificate of Caddy's own CA
	client  *http.Client
	log     net.Conn // receives Caddy's access log
	reports <-chan report
}

// startProxy returns when Caddy serves.
func startProxy(dir, block string) (*proxy, error) {
	port, err := usualPort(8443)
	if err != nil {
		return nil, err
	}
	adminPort, err := usualPort(2020) // the user may run another Caddy, on 2019
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }()
	if err := load(fmt.Sprintf(caddyfile, adminPort, dir, port, listener.Addr(), block)); err != nil {
		return nil, err
	}
	p := &proxy{
		url:    fmt.Sprintf("https://localhost:%d", port),
		admin:  fmt.Sprintf("http://localhost:%d", adminPort),
		block:  block,
		root:   filepath.Join(dir, "pki", "authorities", "local", "root.crt"),
		client: new(http.Client),
	}
	if err := p.collectReports(listener); err != nil {
		return nil, errors.Join(err, caddy.Stop())
	}
	if err := p.connect(port); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// load runs Caddy with this Caddyfile.
func load(caddyfile string) error {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	if err != nil {
		return fmt.Errorf("reading the Caddyfile: %w", err)
	}
	if err := caddy.Load(config, true); err != nil {
		return fmt.Errorf("starting Caddy: %w", err)
	}
	return nil
}

// collectReports accepts the connection that Caddy made when it was loaded.
func (p *proxy) collectReports(listener net.Listener) (err error) {
	if p.log, err = listener.Accept(); err != nil {
		return fmt.Errorf("receiving Caddy's access log: %w", err)
	}
	p.reports = readReports(p.log)
	return nil
}

// connect makes the client and waits until Caddy has a certificate. It cannot be
// interrupted: Caddy would write the certificate into a directory that no longer exists.
func (p *proxy) connect(port int) error {
	pem, err := os.ReadFile(p.root)
	if err != nil {
		return fmt.Errorf("reading the certificate of Caddy's CA: %w", err)
	}
	trust := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	trust.RootCAs.AppendCertsFromPEM(pem)
	p.client.Transport = &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true}

	const patience = 20 * time.Second
	dialer := &net.Dialer{Timeout: patience}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := tls.DialWithDialer(dialer, "tcp", fmt.Sprintf("127.0.0.1:%d", port), trust)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("connecting to Caddy: %w", err)
		}
	}
}

// stop stops Caddy. The channel of reports is closed after the last one.
func (p *proxy) stop() {
	p.client.CloseIdleConnections()
	_ = caddy.Stop() // never fails
	// Caddy keeps the connection open. What it has logged has arrived by now.
	_ = p.log.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
}

// usualPort is the usual port, or a free one.
func usualPort(usual int) (int, error) {
	const tries = 10
	port, err := freePort(usual)
	for range tries {
		if err == nil {
			break
		}
		port, err = freePort(0)
	}
	return port, err
}

// freePort returns the port, or any port for 0, if it is free for both TCP and UDP (HTTP/3).
func freePort(port int) (int, error) {
	// Clients may try [::1] for localhost first, where another server may listen.
	if conn, err := net.Dial("tcp", fmt.Sprintf("[::1]:%d", port)); err == nil {
		return 0, errors.Join(fmt.Errorf("port %d is taken", port), conn.Close())
	}
	tcp, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return 0, err
	}
	defer func() { _ = tcp.Close() }()
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		return 0, err
	}
	return tcp.Addr().(*net.TCPAddr).Port, udp.Close()
}
