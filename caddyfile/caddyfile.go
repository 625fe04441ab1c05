// Package caddyfile is the grammar of the epd_proxy directive: a block of options,
// each of which is given once. It must not know what the options mean; package
// epdhandler has the table of them.
package caddyfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Options are the options that the block may have, by name.
type Options map[string]Option

// An Option reads one option of the block.
type Option func(*Segment) error

// Segment is one option as written: its name, its arguments and its block. The
// embedded dispenser holds just this and stands at the name.
type Segment struct {
	*caddyfile.Dispenser

	tokens  caddyfile.Segment
	options Options
}

// Name is the name of the option.
func (s *Segment) Name() string { return s.tokens[0].Text }

// Places are the lines of the options, and of the directive, which has no name here.
type Places map[string]caddyfile.Dispenser

// WrapErr adds the line of the option to an error, or that of the directive if the
// option is not written.
func (p Places) WrapErr(option string, err error) error {
	at, ok := p[option]
	if !ok {
		at = p[""]
	}
	return at.WrapErr(err)
}

// renamed are options of earlier versions, and what they are called now.
var renamed = map[string]string{"keep_handles": "decode_has_embeddings"}

// Parse reads the directive with its block.
func Parse(d *caddyfile.Dispenser, options Options) (Places, error) {
	d.Next() // the directive's name
	places := Places{"": *d}
	directive := d.Val()
	if d.NextArg() {
		return nil, d.Errf("unexpected argument '%s': %s takes none; upstreams go into its block, as in 'encode %s'", d.Val(), directive, d.Val())
	}
	for d.NextBlock(0) {
		name := d.Val()
		option, ok := options[name]
		_, given := places[name]
		switch {
		case !ok && renamed[name] != "":
			return nil, d.Errf("%s is called %s now", name, renamed[name])
		case !ok:
			return nil, d.Errf("unrecognized option '%s'; options of reverse_proxy go into the block of a pool, those of %s are: %s",
				name, directive, strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		case given:
			return nil, d.Errf("'%s' is given twice; write all of it in one place", name)
		}
		places[name] = *d
		tokens := d.NextSegment()
		segment := caddyfile.NewDispenser(tokens)
		segment.Next()
		if err := option(&Segment{segment, tokens, options}); err != nil {
			return nil, err
		}
	}
	return places, nil
}
