// Package caddyfile is the grammar of the epd_proxy directive: a block of options, each of which is
// given once. It must not know what the options mean; package epdhandler has the table of them.
package caddyfile

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"
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

// renamed are options of earlier versions, and what they are called now.
var renamed = map[string]string{"keep_handles": "decode_has_embeddings"}

// Parse reads the directive with its block. at returns the place of an option, or that of the
// directive if the option is not written.
func Parse(d *caddyfile.Dispenser, options Options) (at func(option string) *caddyfile.Dispenser, err error) {
	d.Next() // the directive's name
	start, directive := new(*d), d.Val()
	places := make(map[string]*caddyfile.Dispenser)
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
		places[name] = new(*d)
		tokens := d.NextSegment()
		segment := caddyfile.NewDispenser(tokens)
		segment.Next()
		if err := option(&Segment{segment, tokens, options}); err != nil {
			return nil, err
		}
	}
	return func(option string) *caddyfile.Dispenser { return cmp.Or(places[option], start) }, nil
}

// Pool is an option with the syntax of reverse_proxy: <name> <upstreams...> { … }. Its block may have
// 'health_checks off' as well. FinalizeUnmarshalCaddyfile of the handler must be called afterwards.
func Pool(to **reverseproxy.Handler) Option {
	return func(s *Segment) error {
		if err := s.checkUpstreams(); err != nil {
			return err
		}
		tokens, off, err := s.poolTokens()
		if err != nil {
			return err
		}
		pool := new(reverseproxy.Handler)
		if err := pool.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
			return err
		}
		if off != nil {
			pool.HealthChecks = cmp.Or(pool.HealthChecks, new(reverseproxy.HealthChecks))
			if pool.HealthChecks.Active != nil {
				return off.Err("'health_checks off' contradicts the options of health checks in the same block; remove one or the other")
			}
			pool.HealthChecks.Active = new(reverseproxy.ActiveHealthChecks)
		}
		*to = pool
		return nil
	}
}

// checkUpstreams finds words that reverse_proxy would take for hosts.
func (s *Segment) checkUpstreams() error {
	upstreams := s.RemainingArgs()
	if args := strings.Join(upstreams, " "); strings.Contains(args, ",") {
		spaced := strings.Fields(strings.ReplaceAll(args, ",", " "))
		return s.Errf("upstreams are separated by spaces, not commas; write '%s %s'", s.Name(), strings.Join(spaced, " "))
	}
	for i, upstream := range upstreams {
		if i == 0 && (meansOff(upstream) || upstream == "to" || upstream == "=") {
			return s.Errf("'%s' would be taken for the name of a host; write '%s host:port', with one or more of them", upstream, s.Name())
		}
		if !strings.ContainsAny(upstream, ":/{") {
			return s.Errf("'%s' has no port, which would mean port 80; write '%s:80' if it does, or the engine's own, such as '%s:8001'", upstream, upstream, upstream)
		}
	}
	return nil
}

// poolTokens returns the tokens for reverse_proxy, which do not have 'health_checks off', and a
// dispenser at that, nil if it is not in the block. It finds options of the directive in the block.
func (s *Segment) poolTokens() (tokens caddyfile.Segment, off *caddyfile.Dispenser, err error) {
	tokens = slices.Clone(s.tokens)
	d := caddyfile.NewDispenser(tokens)
	d.Next()
	d.RemainingArgs()
	for d.NextBlock(0) {
		if _, ours := s.options[d.Val()]; ours {
			return nil, nil, d.Errf("'%s' is no option of a pool: write it beside %s, not in its block", d.Val(), s.Name())
		}
		if d.Val() != "health_checks" {
			d.NextSegment()
			continue
		}
		at := caddyfile.NewDispenser(caddyfile.Segment{d.Token()})
		at.Next()
		args := d.RemainingArgs()
		switch {
		case len(args) != 1 || args[0] != "off":
			return nil, nil, at.Err("write 'health_checks off' to switch health checks off, or options such as health_uri to change them")
		case off != nil:
			return nil, nil, at.Err("'health_checks' is given twice")
		}
		off, tokens = at, d.DeleteN(2)
	}
	return tokens, off, nil
}

// OptionalPool is a [Pool] that can be switched off: <name> disable | none | "".
func OptionalPool(to **reverseproxy.Handler) Option {
	pool := Pool(to)
	return func(s *Segment) error {
		if len(s.tokens) == 1 {
			return pool(s)
		}
		switch word := s.tokens[1].Text; {
		case word == "disable" || word == "none" || word == "":
			if s.Next(); s.Next() {
				return s.Errf("'%s' switches %s off, so that nothing can follow; write either upstreams or '%s'", word, s.Name(), word)
			}
			return nil
		case meansOff(word):
			return s.Errf("'%s' would be taken for the name of a host; write '%s disable'", word, s.Name())
		}
		return pool(s)
	}
}

// meansOff reports whether a word in place of upstreams is meant to switch a pool off.
func meansOff(word string) bool {
	return slices.Contains([]string{"disable", "disabled", "none", "off", "no", "false"}, strings.ToLower(word))
}

// Int is a positive number.
func Int(to *int) Option {
	return value(to, "number", "2", "2, or leave it out", func(arg string) (int, bool) {
		n, err := strconv.Atoi(arg)
		return n, err == nil && n > 0
	})
}

// OptionalInt is a number that may be 0, which is not the same as nothing.
func OptionalInt(to **int) Option {
	return value(to, "number", "2", "2, or leave it out", func(arg string) (*int, bool) {
		n, err := strconv.Atoi(arg)
		return &n, err == nil && n >= 0
	})
}

// Duration is a positive length of time.
func Duration(to *caddy.Duration) Option {
	return value(to, "duration", "30s", "500ms, 30s or 2m", func(arg string) (caddy.Duration, bool) {
		d, err := caddy.ParseDuration(arg)
		return caddy.Duration(d), err == nil && d > 0
	})
}

// Size is a positive number of bytes.
func Size(to *int64) Option {
	return value(to, "size", "64MiB", "512KiB, 64MiB or 1GiB", func(arg string) (int64, bool) {
		n, err := humanize.ParseBytes(arg)
		return int64(n), err == nil && int64(n) > 0
	})
}

// String is one word, or more in quotes.
func String(to *string, example string) Option {
	return value(to, "text", example, example, func(arg string) (string, bool) { return arg, true })
}

// value is an option with one argument of a kind. examples are for the error about a bad one.
func value[T any](to *T, kind, example, examples string, parse func(arg string) (T, bool)) Option {
	return func(s *Segment) error {
		if !s.NextArg() {
			return s.Errf("%s needs an argument: a %s such as %s", s.Name(), kind, example)
		}
		arg := s.Val()
		if s.Next() {
			return s.Errf("unexpected '%s': %s has one argument, a %s such as %s", s.Val(), s.Name(), kind, example)
		}
		s.Prev()
		v, ok := parse(arg)
		if !ok {
			return s.Errf("bad %s '%s' for %s; write one such as %s", kind, arg, s.Name(), examples)
		}
		*to = v
		return nil
	}
}

// List is one or more words.
func List(to *[]string, example string) Option {
	return func(s *Segment) error {
		if *to = s.RemainingArgs(); s.Next() {
			return s.Errf("unexpected '%s': %s has no block", s.Val(), s.Name())
		}
		if len(*to) == 0 {
			return s.Errf("%s needs arguments, such as: %s", s.Name(), example)
		}
		return nil
	}
}

// Lists is a block of lines, each of which is a name and one or more words.
func Lists(to *map[string][]string, example string) Option {
	return func(s *Segment) error {
		*to = make(map[string][]string)
		if s.NextArg() {
			return s.Errf("unexpected '%s': %s has a block, with lines such as '%s'", s.Val(), s.Name(), example)
		}
		for s.NextBlock(0) {
			name := s.Val()
			if (*to)[name] != nil {
				return s.Errf("'%s' is given twice in %s", name, s.Name())
			}
			if (*to)[name] = s.RemainingArgs(); len((*to)[name]) == 0 {
				return s.Errf("'%s' has no arguments; write a line such as '%s'", name, example)
			}
		}
		if len(*to) == 0 {
			return s.Errf("%s needs a block, with lines such as '%s'", s.Name(), example)
		}
		return nil
	}
}

// Map is a block of lines, each of which is a name and one word.
func Map(to *map[string]string, example string) Option {
	return func(s *Segment) error {
		var lists map[string][]string
		if err := Lists(&lists, example)(s); err != nil {
			return err
		}
		*to = make(map[string]string)
		for _, name := range slices.Sorted(maps.Keys(lists)) {
			if len(lists[name]) > 1 {
				return s.Errf("'%s' has more than one argument; write a line such as '%s'", name, example)
			}
			(*to)[name] = lists[name][0]
		}
		return nil
	}
}

// Flag is an option that is on when it is given.
func Flag(to *bool) Option {
	return func(s *Segment) error {
		if s.Next() {
			return s.Errf("unexpected '%s': %s has no argument; it is on when it is written", s.Val(), s.Name())
		}
		*to = true
		return nil
	}
}
