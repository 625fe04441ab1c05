package epdhandler

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// source is where media may come from: a scheme and, unless it is empty, a host,
// which may begin with "*." for all hosts below it.
type source struct{ scheme, host string }

// parseSource reads "data:", "file:", "https:", "https://media.example.com" or
// "https://*.example.com".
func parseSource(s string) (source, error) {
	scheme, rest, ok := strings.Cut(strings.ToLower(s), ":")
	host, hasHost := strings.CutPrefix(rest, "//")
	switch {
	case !ok || scheme == "" || rest != "" && (!hasHost || host == ""):
		return source{}, fmt.Errorf("bad media source '%s'; write one such as data:, file:, https: or https://*.example.com", s)
	case host != "" && !isName(strings.TrimPrefix(host, "*.")):
		return source{}, fmt.Errorf("bad media source '%s': after https:// there can be a host only, or *. and a host", s)
	}
	return source{scheme, host}, nil
}

// isName reports whether a host is a name of non-empty labels, or an IPv4 address: what
// every parser, resolver and client takes for the same host. In lower case.
func isName(host string) bool {
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// maxURL is the longest URL that is looked at. Data is longer, but begins with its scheme.
const maxURL = 8 << 10

// checkSources refuses media that come from elsewhere than is configured: an engine
// that fetches what clients name would open the network that it is in.
func (x *exchange) checkSources() *apiError {
	if len(x.h.sources) == 0 {
		return nil
	}
	for _, item := range x.body.Items {
		if !x.mayFetch(item) {
			e := badRequest(http.StatusBadRequest, "media_source", "the media of part %d of message %d come from a source that is not allowed", item.Part, item.Message)
			e.Param = item.Path()
			return e
		}
	}
	return nil
}

func (x *exchange) mayFetch(item body.Item) bool {
	from := source{scheme: "data"}
	if !item.Inline {
		var ok bool
		if from, ok = sourceOf(x.body.URL(item, maxURL)); !ok {
			return false
		}
	}
	for _, s := range x.h.sources {
		if s.scheme == from.scheme && (s.host == "" || isName(from.host) && (s.host == from.host || strings.HasPrefix(s.host, "*.") && strings.HasSuffix(from.host, s.host[1:]))) {
			return true
		}
	}
	return false
}

// sourceOf returns where a URL points to. It knows only URLs that no two parsers can
// read differently: vLLM's is another one. Of one that is not whole it knows only that
// it is data: how its host goes on, and whether it is the host, comes later.
func sourceOf(raw string, whole bool) (source, bool) {
	scheme, _, ok := strings.Cut(raw, ":")
	if scheme = strings.ToLower(scheme); ok && scheme == "data" {
		return source{scheme: scheme}, true
	}
	if !whole || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == '\\' || r > 0x7e }) {
		return source{}, false
	}
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" || u.Host == "" && scheme != "file" {
		return source{}, false
	}
	return source{strings.ToLower(u.Scheme), strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")}, true
}
