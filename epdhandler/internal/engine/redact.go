package engine

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

// Name is what logs call the instance at an address. Addresses tell about the network
// behind the proxy, and logs get around; debug logging adds them.
func (p *Pool) Name(address string) string {
	if address != "" && p.debugs() {
		return p.Place(address) + "=" + address
	}
	return p.Place(address)
}

// Place names an instance by its place in the pool, as in decode#2, or in a dynamic one by a checksum.
func (p *Pool) Place(address string) string {
	if address == "" {
		return ""
	}
	at := func(u *reverseproxy.Upstream) bool { return u.String() == address }
	if i := slices.IndexFunc(p.Handler.Upstreams, at); i >= 0 {
		return fmt.Sprintf("%s#%d", p.Stage, i+1)
	}
	return fmt.Sprintf("%s#%06x", p.Stage, crc32.ChecksumIEEE([]byte(address))>>8)
}

func (p *Pool) debugs() bool { return p.Logger.Core().Enabled(zapcore.DebugLevel) }

// What in an error's text is, or may be, the address of an engine or of something near it.
var (
	ipAddress = regexp.MustCompile(`\[[^\]]*:[^\]]*\](:\d+)?|\b\d{1,3}(\.\d{1,3}){3}\b(:\d+)?|\b[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}(%\w+)?`)
	hostPort  = regexp.MustCompile(`\b[\w#-]+(\.[\w-]+)*:\d{2,5}\b`)
	certNames = regexp.MustCompile(`is valid for .*, not `)
	certName  = regexp.MustCompile(`not valid for \S+`)
	lookUpOf  = regexp.MustCompile(`\blookup \S+`)
)

// WithoutAddresses is what logs say of an error of an attempt, nil if it is of none.
func (p *Pool) WithoutAddresses(err error, a *Attempt) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if p.debugs() {
		return text
	}
	known := p.addresses(a)
	for _, address := range known {
		text = replaceWord(text, address, p.Place(address))
		text = replaceWord(text, strings.TrimPrefix(address, "unix/"), p.Place(address))
	}
	for _, address := range known { // of several with one host, the one that was asked is the first
		if host, _, err := net.SplitHostPort(address); err == nil {
			text = replaceWord(text, host, p.Place(address))
		}
	}
	text = certNames.ReplaceAllLiteralString(text, "is not valid for ")
	text = replaceUnnamed(certName, text, "not valid for …")
	text = ipAddress.ReplaceAllLiteralString(text, "…")
	text = replaceUnnamed(hostPort, text, "…")
	return replaceUnnamed(lookUpOf, text, "lookup …")
}

// replaceUnnamed replaces matches in which there is no name of an instance.
func replaceUnnamed(pattern *regexp.Regexp, text, by string) string {
	return pattern.ReplaceAllStringFunc(text, func(match string) string {
		if strings.Contains(match, "#") {
			return match
		}
		return by
	})
}

// addresses are those that an error may hold, the instances that were asked first.
func (p *Pool) addresses(a *Attempt) (known []string) {
	upstreams := p.Handler.Upstreams
	if a != nil {
		known = slices.Clone(a.Chosen)
		slices.Reverse(known)
		upstreams = slices.Concat(upstreams, a.ask.Upstreams())
	}
	for _, u := range upstreams {
		known = append(known, u.String())
	}
	return known
}

// replaceWord replaces s where it is no part of another name.
func replaceWord(text, s, by string) string {
	if len(s) < 2 || !strings.Contains(text, s) {
		return text
	}
	word := regexp.MustCompile(`(\w[.-]?)?` + regexp.QuoteMeta(s) + `([.-]?\w)?`)
	return word.ReplaceAllStringFunc(text, func(match string) string {
		if match == s {
			return by
		}
		return match
	})
}
