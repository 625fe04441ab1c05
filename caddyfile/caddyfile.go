// Package caddyfile is the grammar of the epd_proxy directive: a block of options,
// each of which is given once. It knows Caddy, but nothing of what the options
// mean; package epdhandler has the table of them.
package caddyfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Options are the options that the block may have, by name.
type Options map[string]Option

// An Option reads one option of the block.
type Option func(*Segment) error

// Segment is one option as written: its name, its arguments and its block. The
// embedded helper's dispenser holds just this and stands at the name.
type Segment struct {
	httpcaddyfile.Helper

	tokens  caddyfile.Segment
	options Options
}

// Name is the name of the option.
func (s *Segment) Name() string { return s.tokens[0].Text }

// renamed are options of earlier versions, and what they are called now.
var renamed = map[string]string{"keep_handles": "decode_has_embeddings"}

// Parse reads the directive with its block. The required options must be given.
func Parse(h httpcaddyfile.Helper, options Options, required ...string) error {
	h.Next() // the directive's name
	start := *h.Dispenser
	if h.NextArg() {
		return h.Errf("unexpected argument '%s': %s takes none; upstreams go into its block, as in 'encode %s'", h.Val(), start.Val(), h.Val())
	}
	given := make(map[string]bool)
	for h.NextBlock(0) {
		name := h.Val()
		option, ok := options[name]
		switch {
		case !ok && isPoolOption(h):
			return h.Errf("'%s' is an option of a pool: write it in the block of encode, prefill or decode", name)
		case !ok && renamed[name] != "":
			return h.Errf("%s is called %s now", name, renamed[name])
		case !ok:
			return h.Errf("unrecognized option '%s'; the options of %s are: %s", name, start.Val(), strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		case given[name]:
			return h.Errf("'%s' is given twice; write all of it in one place", name)
		}
		given[name] = true
		tokens := h.NextSegment()
		d := caddyfile.NewDispenser(tokens)
		d.Next()
		if err := option(&Segment{h.WithDispenser(d), tokens, options}); err != nil {
			return err
		}
	}
	for _, name := range required {
		if !given[name] {
			return start.Errf("%s needs '%s'; add a line such as '%s host:port' to its block", start.Val(), name, name)
		}
	}
	return nil
}

// isPoolOption reports whether reverse_proxy knows the option at which h stands. It
// is tried out: a list of names would be out of date with the next Caddy.
func isPoolOption(h httpcaddyfile.Helper) bool {
	name := h.Val()
	d := *h.Dispenser
	segment := d.NextSegment()

	// reverse_proxy {
	//	<the option>
	// }
	open, brace, end := segment[0], segment[0], segment[len(segment)-1]
	open.Text, brace.Text, end.Text = "reverse_proxy", "{", "}"
	open.Line--
	brace.Line--
	end.Line++
	tokens := append(caddyfile.Segment{open, brace}, append(segment, end)...)

	err := new(reverseproxy.Handler).UnmarshalCaddyfile(caddyfile.NewDispenser(tokens))
	return err == nil || !strings.Contains(err.Error(), "unrecognized subdirective "+name)
}
