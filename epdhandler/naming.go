package epdhandler

import (
	"fmt"
	"hash/crc32"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap/zapcore"
)

// name is what logs call the instance at an address. Addresses tell about the network
// behind the proxy, and logs get around; debug logging adds them.
func (p *pool) name(address string) string {
	if address != "" && p.debugs() {
		return p.place(address) + "=" + address
	}
	return p.place(address)
}

// place names the instance at an address by its place in the pool, as in decode#2, or if
// the pool is dynamic by a checksum.
func (p *pool) place(address string) string {
	if address == "" {
		return ""
	}
	at := func(u *reverseproxy.Upstream) bool { return u.String() == address }
	if i := slices.IndexFunc(p.handler.Upstreams, at); i >= 0 {
		return fmt.Sprintf("%s#%d", p.stage, i+1)
	}
	return fmt.Sprintf("%s#%06x", p.stage, crc32.ChecksumIEEE([]byte(address))>>8)
}

func (p *pool) debugs() bool { return p.logger.Core().Enabled(zapcore.DebugLevel) }

var ipAddress = regexp.MustCompile(`\[[^\]]*:[^\]]*\](:\d+)?|\b\d{1,3}(\.\d{1,3}){3}\b(:\d+)?`)

// withoutAddresses is what logs say of an error of a call.
func (p *pool) withoutAddresses(err error, c *call) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if p.debugs() {
		return text
	}
	for _, address := range c.chosen {
		text = strings.ReplaceAll(text, address, p.name(address))
		if host, _, err := net.SplitHostPort(address); err == nil {
			word := regexp.MustCompile(`\b` + regexp.QuoteMeta(host) + `\b`)
			text = word.ReplaceAllLiteralString(text, p.name(address))
		}
	}
	return ipAddress.ReplaceAllString(text, "…")
}
