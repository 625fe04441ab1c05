package epdhandler

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
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
		if e := x.checkSource(item); e != nil {
			e.Param = item.Path()
			return e
		}
	}
	return nil
}

func (x *exchange) checkSource(item body.Item) *apiError {
	from := source{scheme: "data"}
	if !item.Inline {
		var problem string
		if from, problem = sourceOf(x.body.URL(item, maxURL)); problem != "" {
			return badRequest(http.StatusBadRequest, "media_url", "the URL in part %d of message %d %s", item.Part, item.Message, problem)
		}
	}
	if !slices.ContainsFunc(x.h.sources, from.within) {
		return badRequest(http.StatusBadRequest, "media_source", "the media of part %d of message %d come from a source that is not allowed", item.Part, item.Message)
	}
	return nil
}

// within reports whether a URL's source is one of those that an allowed one stands for.
func (from source) within(allowed source) bool {
	return allowed.scheme == from.scheme && (allowed.host == "" || isName(from.host) &&
		(allowed.host == from.host || strings.HasPrefix(allowed.host, "*.") && strings.HasSuffix(from.host, allowed.host[1:])))
}

// sourceOf returns where a URL points to, or why that cannot be told. It knows only URLs that
// no two parsers can read differently: vLLM's is another one. Of one that is not whole it knows only that
// it is data: how its host goes on, and whether it is the host, comes later.
func sourceOf(raw string, whole bool) (from source, problem string) {
	scheme, _, ok := strings.Cut(raw, ":")
	if scheme = strings.ToLower(scheme); ok && scheme == "data" {
		return source{scheme: scheme}, ""
	}
	u, err := url.Parse(raw)
	switch {
	case !whole:
		return source{}, fmt.Sprintf("is longer than %d bytes", maxURL)
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == '\\' || r > 0x7e }):
		return source{}, "has characters that must be percent-encoded, such as spaces or letters that are not ASCII"
	case err != nil, u.Opaque != "", u.Host == "" && scheme != "file":
		return source{}, "is malformed: it must have a scheme and a host, as in https://media.example.com/1.png"
	case u.User != nil:
		return source{}, "must not have a user name"
	}
	return source{strings.ToLower(u.Scheme), strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")}, ""
}
