//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// fault is a failure of engines or clients, and a check of its effects.
type fault struct {
	name     string
	topology topology
	try      func(ctx context.Context, t *trial) error
}

// trial is the test of one fault.
type trial struct {
	*suite
	fleet    *fleet
	topology topology
	proxy    *proxy
}

// watched makes health checks frequent, to shorten the waits.
const watched = "health_interval 1s\nhealth_timeout 2s"

var (
	pairs      = topology{encode: list("e1 e2"), decode: list("pd1 pd2"), each: watched}
	files      = topology{encode: list("e1"), decode: list("pd1 pd2"), each: watched}
	references = topology{encode: list("e1"), decode: list("pd1 pd2"), each: watched, options: "references", since: "0.30.0"}
	patient    = topology{encode: list("e1 e2"), decode: list("pd1 pd2"), each: watched, options: "encode_timeout 5s\nstream_start_timeout 10s"}
	stages     = topology{encode: list("e1"), prefill: list("p1"), decode: list("d1"), each: watched}
)

// faults are in an order that needs few starts of engines.
var faults = []fault{
	{"clients leave, E+PD", pairs, leave},
	{"one of two encoders is killed", pairs, oneDies("e1", 0)},
	{"one of two prefill+decode engines is killed", pairs, oneDies("pd1", clients)},
	{"one of two encoders is paused", patient, onePauses("e1", 0)},
	{"one of two prefill+decode engines is paused", patient, onePauses("pd1", 3*clients)},
	{"the files of embeddings are deleted", files, filesAreDeleted(0)},
	{"the files of embeddings are deleted, references", references, filesAreDeleted(1)},
	{"clients leave, E+P+D", stages, leave},
	{"the encoder is killed, E+P+D", stages, onlyOneDies("e1")},
	{"prefill is killed, E+P+D", stages, onlyOneDies("p1")},
	{"decode is killed, E+P+D", stages, onlyOneDies("d1")},
}

// tryFaults tests the chosen faults.
func (s *suite) tryFaults(ctx context.Context, f *fleet) error {
	for _, fault := range s.faultsOf(f.release) {
		say("%s", fault.name)
		err := s.try(ctx, f, fault)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.report.failed(f, fault.name, err.Error())
		} else {
			s.report.passed(f, fault.name)
		}
	}
	return nil
}

// faultsOf are the chosen faults that a release supports.
func (s *suite) faultsOf(r release) []fault {
	return slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !s.match(f.name) || !r.has(f.topology) })
}

func (s *suite) try(ctx context.Context, f *fleet, fault fault) error {
	t := &trial{suite: s, fleet: f, topology: fault.topology}
	if err := f.want(ctx, append(t.topology.engines(), "single")...); err != nil {
		return err
	}
	var err error
	if t.proxy, err = s.startProxy(ctx, f.logs, t.topology.block(f)); err != nil {
		return err
	}
	defer t.proxy.stop()
	return fault.try(ctx, t)
}

// oneDies kills one of two engines under load, and restarts it. At most this many requests may
// get an error: those in service at the engine.
func oneDies(name string, allowed int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		load := t.startLoad(ctx, t.proxy)
		defer load.stop()
		if err := load.more(ctx, 10); err != nil {
			return err
		}
		t.fleet.engines[name].kill()
		if err := load.more(ctx, 20); err != nil {
			return fmt.Errorf("after %s was killed: %w", name, err)
		}
		if err := t.restart(ctx, name); err != nil {
			return err
		}
		if err := load.more(ctx, 20); err != nil {
			return fmt.Errorf("after the restart of %s: %w", name, err)
		}
		load.stop()
		if err := t.works(ctx, name); err != nil {
			return err
		}
		return t.judge(ctx, load.since(0), allowed)
	}
}

// onlyOneDies kills the only engine of a pool under load: all requests then fail with clean errors,
// and none fails after the restart.
func onlyOneDies(name string) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		load := t.startLoad(ctx, t.proxy)
		defer load.stop()
		if err := load.more(ctx, 5); err != nil {
			return err
		}
		before := load.count.Load()
		t.fleet.engines[name].kill()
		if err := load.more(ctx, 10); err != nil {
			return fmt.Errorf("after %s was killed: %w", name, err)
		}
		load.stop()
		if err := t.judge(ctx, load.since(0), 10+clients); err != nil {
			return err
		}
		if right, _, _ := t.kinds(ctx, t.fleet, load.since(before)); right > clients {
			return fmt.Errorf("%d right answers while %s was dead", right, name)
		}
		if err := t.restart(ctx, name); err != nil {
			return err
		}
		again := t.startLoad(ctx, t.proxy)
		defer again.stop()
		if err := again.more(ctx, 5); err != nil {
			return err
		}
		again.stop()
		return t.judge(ctx, again.since(0), 0)
	}
}

// onePauses stops one of two engines without ending it, as a hanging GPU does.
func onePauses(name string, allowed int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		load := t.startLoad(ctx, t.proxy)
		defer load.stop()
		if err := load.more(ctx, 5); err != nil {
			return err
		}
		t.fleet.engines[name].signal(syscall.SIGSTOP)
		err := load.more(ctx, 20)
		t.fleet.engines[name].signal(syscall.SIGCONT)
		if err != nil {
			return fmt.Errorf("while %s was paused: %w", name, err)
		}
		if err := load.more(ctx, 20); err != nil {
			return fmt.Errorf("after %s was resumed: %w", name, err)
		}
		load.stop()
		return t.judge(ctx, load.since(0), allowed)
	}
}

// judge checks that all answers are right, except for at most this many clean errors.
func (t *trial) judge(ctx context.Context, list []exchange, allowed int) error {
	right, failed, wrong := t.kinds(ctx, t.fleet, list)
	sum := 0
	for _, n := range failed {
		sum += n
	}
	say("  %d right, %v", right, failed)
	switch {
	case len(wrong) > 0:
		return fmt.Errorf("%d answers are wrong, the first: %s", len(wrong), wrong[0])
	case sum > allowed:
		return fmt.Errorf("%v errors, want at most %d", failed, allowed)
	case right == 0:
		return errors.New("no answer is right")
	}
	return nil
}

// restart restarts a dead engine and waits until the proxy's health checks find it up.
func (t *trial) restart(ctx context.Context, name string) error {
	if err := t.fleet.want(ctx, append(t.topology.engines(), "single")...); err != nil {
		return err
	}
	return until(ctx, time.Minute, func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.proxy.url()+"/health", nil)
		if err != nil {
			return false, err
		}
		resp, err := t.proxy.client.Do(req)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode == http.StatusOK && !bytes.Contains(body, []byte("degraded")), err
	})
}

// works checks that a restarted engine has answered requests since.
func (t *trial) works(ctx context.Context, name string) error {
	a, err := t.fleet.engines[name].activity(ctx)
	if err == nil && a.answered == 0 {
		err = fmt.Errorf("%s got no request after its restart", name)
	}
	return err
}

// filesAreDeleted deletes the embedding of an image that the encoder has cached and no consumer
// has loaded. The next requests with the image crash exactly this many consumers.
func filesAreDeleted(deaths int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		r := requests.AboutImage(pattern(rand.Uint64()), 24)
		want, err := t.ask(ctx, nil, t.fleet.engines["single"].url(), r)
		if err != nil {
			return err
		}
		if a, err := t.ask(ctx, t.proxy, t.proxy.url(), r.Spoilt()); err != nil || a.Status != http.StatusBadRequest {
			return errors.Join(err, fmt.Errorf("want status 400 for an invalid request: %s", outcome(a)))
		}
		if err := empty(t.fleet.storage); err != nil {
			return err
		}
		got, err := t.ask(ctx, t.proxy, t.proxy.url(), r)
		if err != nil {
			return err
		}
		if d := difference(want, got); d != "" {
			return errors.New(d)
		}
		time.Sleep(dying)
		if dead := t.fleet.dead(); len(dead) != deaths {
			return fmt.Errorf("%v have ended, want %d", dead, deaths)
		}
		return nil
	}
}

// dying is how long an engine takes to end after its core process has ended.
const dying = 15 * time.Second

// empty removes everything in a directory.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
