package caddyfile

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"
)

// Pool is an option with the syntax of reverse_proxy: <name> <upstreams...> { … }. Its block
// may have 'health_checks off' as well. FinalizeUnmarshalCaddyfile of the handler must be
// called afterwards.
func Pool(to **reverseproxy.Handler) Option {
	return func(s *Segment) error {
		if err := s.checkUpstreams(); err != nil {
			return err
		}
		tokens, healthChecks, err := s.takeHealthChecks()
		if err != nil {
			return err
		}
		pool := new(reverseproxy.Handler)
		if err := pool.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
			if ours := s.misplaced(); ours != nil {
				return ours
			}
			return err
		}
		if healthChecks != nil {
			if pool.HealthChecks == nil {
				pool.HealthChecks = new(reverseproxy.HealthChecks)
			}
			if pool.HealthChecks.Active != nil {
				return healthChecks.Err("'health_checks off' contradicts the options of health checks in the same block; remove one or the other")
			}
			pool.HealthChecks.Active = new(reverseproxy.ActiveHealthChecks)
		}
		*to = pool
		return nil
	}
}

// checkUpstreams finds words that reverse_proxy would take for hosts.
func (s *Segment) checkUpstreams() error {
	d := caddyfile.NewDispenser(s.tokens)
	d.Next()
	upstreams := d.RemainingArgs()
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

// takeHealthChecks returns the tokens without 'health_checks off', and a dispenser at that;
// nil if it is not in the block.
func (s *Segment) takeHealthChecks() (tokens caddyfile.Segment, off *caddyfile.Dispenser, err error) {
	tokens = slices.Clone(s.tokens)
	d := caddyfile.NewDispenser(tokens)
	d.Next()
	d.RemainingArgs()
	for d.NextBlock(0) {
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

// misplaced finds an option of the directive in the block of a pool.
func (s *Segment) misplaced() error {
	d := caddyfile.NewDispenser(s.tokens)
	d.Next()
	d.RemainingArgs()
	for d.NextBlock(0) {
		if _, ours := s.options[d.Val()]; ours {
			return d.Errf("'%s' is no option of a pool: write it beside %s, not in its block", d.Val(), s.Name())
		}
		d.NextSegment()
	}
	return nil
}

// OptionalPool is a [Pool] that can be switched off: <name> disable | none | "".
func OptionalPool(to **reverseproxy.Handler) Option {
	pool := Pool(to)
	return func(s *Segment) error {
		if len(s.tokens) > 1 {
			switch off := s.tokens[1].Text; off {
			case "disable", "none", "":
				s.Next()
				if s.Next() {
					return s.Errf("'%s' switches %s off, so that nothing can follow; write either upstreams or '%s'", off, s.Name(), off)
				}
				return nil
			}
			if meansOff(s.tokens[1].Text) {
				return s.Errf("'%s' would be taken for the name of a host; write '%s disable'", s.tokens[1].Text, s.Name())
			}
		}
		return pool(s)
	}
}

// meansOff reports whether a word in place of upstreams is meant to switch a pool off.
func meansOff(word string) bool {
	switch strings.ToLower(word) {
	case "disable", "disabled", "none", "off", "no", "false":
		return true
	}
	return false
}

// Int is a positive number.
func Int(to *int) Option {
	return func(s *Segment) error {
		n, err := s.number(1)
		if err == nil {
			*to = n
		}
		return err
	}
}

// OptionalInt is a number that may be 0, which is not the same as nothing.
func OptionalInt(to **int) Option {
	return func(s *Segment) error {
		n, err := s.number(0)
		if err == nil {
			*to = &n
		}
		return err
	}
}

func (s *Segment) number(least int) (int, error) {
	arg, err := s.argument("a number such as 2")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(arg)
	if err != nil || n < least {
		return 0, s.Errf("bad number '%s' for %s; write one such as 2, or leave it out", arg, s.Name())
	}
	return n, nil
}

// Duration is a positive length of time.
func Duration(to *caddy.Duration) Option {
	return func(s *Segment) error {
		arg, err := s.argument("a duration such as 30s")
		if err != nil {
			return err
		}
		d, err := caddy.ParseDuration(arg)
		if err != nil || d <= 0 {
			return s.Errf("bad duration '%s' for %s; write one such as 500ms, 30s or 2m", arg, s.Name())
		}
		*to = caddy.Duration(d)
		return nil
	}
}

// Size is a positive number of bytes.
func Size(to *int64) Option {
	return func(s *Segment) error {
		arg, err := s.argument("a size such as 64MiB")
		if err != nil {
			return err
		}
		n, err := humanize.ParseBytes(arg)
		if err != nil || n == 0 || int64(n) < 0 {
			return s.Errf("bad size '%s' for %s; write one such as 512KiB, 64MiB or 1GiB", arg, s.Name())
		}
		*to = int64(n)
		return nil
	}
}

// String is one word, or more in quotes.
func String(to *string, example string) Option {
	return func(s *Segment) (err error) {
		*to, err = s.argument("a text such as " + example)
		return err
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

// argument returns the only argument.
func (s *Segment) argument(want string) (string, error) {
	if !s.NextArg() {
		return "", s.Errf("%s needs an argument: %s", s.Name(), want)
	}
	arg := s.Val()
	if s.Next() {
		return "", s.Errf("unexpected '%s': %s has one argument, %s", s.Val(), s.Name(), want)
	}
	s.Prev()
	return arg, nil
}
