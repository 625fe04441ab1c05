//go:build unix

// Command vllm compares the answers of epd_proxy in front of real vLLM engines with those of a
// single engine that runs all stages. It installs vLLM's CPU build, makes tiny models with random
// weights, starts engines and Caddy, sends requests, and prints a table of the results. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// suite is one run.
type suite struct {
	root   string // of the repository
	dir    string // for installations, models and logs
	python string
	caddy  string
	direct *http.Client // for engines, which close idle connections without notice
	report report

	releases   []release
	models     []model
	topologies []topology
	parts      []string
	match      func(name string) bool
}

var begin = time.Now()

// say prints a step, and the time since the start.
func say(format string, args ...any) {
	fmt.Printf("%6s  %s\n", time.Since(begin).Round(time.Second), fmt.Sprintf(format, args...))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := execute(ctx)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func execute(ctx context.Context) error {
	s, err := plan(ctx, os.Args[1:])
	if err != nil {
		return err
	}
	if err := s.needs(); err != nil {
		return err
	}
	if err := buildCaddy(ctx, s.root, s.caddy); err != nil {
		return err
	}
	err = s.run(ctx)
	s.report.write(os.Stdout)
	switch {
	case err != nil:
		return err
	case len(s.report.unexplained) > 0:
		return errors.New("there are unexplained differences")
	case len(s.report.rows) == 0:
		return errors.New("nothing was compared: no topology, request or fault of these releases matches")
	}
	return nil
}

// run runs all parts with all models of all releases. It goes on with the next release if one
// fails.
func (s *suite) run(ctx context.Context) error {
	var failures []error
	for _, r := range s.releases {
		if err := s.runRelease(ctx, r); err != nil {
			failures = append(failures, fmt.Errorf("vLLM %s: %w", r, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failures...)
}

func (s *suite) runRelease(ctx context.Context, r release) error {
	dir := filepath.Join(s.dir, string(r))
	venv, err := r.install(ctx, s.python, filepath.Join(s.root, "integration/vllm/requirements"), dir)
	if err != nil {
		return err
	}
	if err := run(ctx, nil, filepath.Join(venv, "bin", "python"), filepath.Join(s.root, "integration/vllm/media.py"), string(s.media())); err != nil {
		return err
	}
	for _, m := range s.models {
		if err := s.runModel(ctx, r, m, venv, filepath.Join(dir, m.name)); err != nil {
			return fmt.Errorf("%s, %w", m.name, err)
		}
	}
	return nil
}

// media is a directory that engines can read.
func (s *suite) media() requests.Media { return requests.Media(filepath.Join(s.dir, "media")) }

func (s *suite) runModel(ctx context.Context, r release, m model, venv, dir string) error {
	f := &fleet{
		release: r,
		model:   m,
		venv:    venv,
		dir:     filepath.Join(dir, "model"),
		media:   string(s.media()),
		logs:    filepath.Join(dir, "logs"),
		storage: filepath.Join(dir, "embeddings"),
		engines: map[string]*engine{},

		connectors: filepath.Join(s.root, "integration/vllm/connectors"),
	}
	defer f.stop()
	if err := m.make(ctx, s.root, venv, f.dir); err != nil {
		return err
	}
	for _, empty := range []string{f.logs, f.storage} {
		if err := errors.Join(os.RemoveAll(empty), os.MkdirAll(empty, 0o755)); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		name string
		do   func(context.Context, *fleet) error
	}{{"differential", s.differential}, {"faults", s.tryFaults}, {"bench", s.bench}} {
		if !s.has(part.name) {
			continue
		}
		if err := part.do(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}
