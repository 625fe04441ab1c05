//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// fleet is the running engines of one release and one model. An engine's name is its role and
// a number: e1, e2 (encoders), pd1 (prefill+decode), p1, d1, and single, which runs all stages.
type fleet struct {
	release release
	model   model
	venv    string
	dir     string // of the model
	media   string
	logs    string
	storage string // of embeddings
	// connectors has a Python module for releases whose own connector needs a GPU.
	connectors string

	engines map[string]*engine
}

// want starts and stops engines so that exactly these run.
func (f *fleet) want(ctx context.Context, names ...string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for name, e := range f.engines {
		if !slices.Contains(names, name) {
			e.stop()
			delete(f.engines, name)
		}
	}
	var started []*engine
	for _, name := range names {
		if e := f.engines[name]; e != nil && e.alive() {
			continue
		}
		e, err := f.launch(name)
		if err != nil {
			return err
		}
		started = append(started, e)
	}
	if len(started) == 0 {
		return nil
	}
	say("starting %s", strings.Join(names, ", "))
	defer f.quiet(started)()
	return f.ready(ctx, started)
}

// quiet pauses engines with NIXL, which use half a core while they are idle, until the others are ready.
func (f *fleet) quiet(starting []*engine) (goOn func()) {
	var held []*engine
	for _, e := range f.engines {
		if slices.Contains(e.args, "--kv-transfer-config") && !slices.Contains(starting, e) {
			e.signal(syscall.SIGSTOP)
			held = append(held, e)
		}
	}
	return func() {
		for _, e := range held {
			e.signal(syscall.SIGCONT)
		}
	}
}

// ready waits for engines that have been started.
func (f *fleet) ready(ctx context.Context, engines []*engine) error {
	errs := make([]error, len(engines))
	var wait sync.WaitGroup
	for i, e := range engines {
		wait.Go(func() {
			if err := e.ready(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", e.name, err)
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// launch starts an engine, also in place of a dead one.
func (f *fleet) launch(name string) (*engine, error) {
	e := f.engines[name]
	if e == nil {
		var err error
		if e, err = f.engine(name); err != nil {
			return nil, err
		}
		f.engines[name] = e
	}
	return e, e.start()
}

// engine prepares an engine that has not run yet.
func (f *fleet) engine(name string) (*engine, error) {
	port, err := fakevllm.FreePort()
	if err != nil {
		return nil, err
	}
	side, err := fakevllm.FreePort()
	if err != nil {
		return nil, err
	}
	role := strings.TrimRight(name, "0123456789")
	special, ok := f.roles()[role]
	if !ok {
		return nil, fmt.Errorf("no role %q", role)
	}
	args := []string{
		vllm(f.venv), "serve", f.dir, "--served-model-name", "tiny", "--host", host, "--port", strconv.Itoa(port),
		"--dtype", "float32", "--enforce-eager", "--max-model-len", "8192", "--max-num-seqs", "16",
		"--enable-auto-tool-choice", "--tool-call-parser", "hermes",
		"--allowed-local-media-path", f.media, "--num-gpu-blocks-override", "512", // 64 MiB of KV instead of 1 GiB
	}
	return &engine{
		name: name,
		addr: local(port),
		args: slices.Concat(args, f.model.flags, f.release.flags(f.model), special),
		env: []string{
			"OMP_NUM_THREADS=1", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind",
			"HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "PYTHONDONTWRITEBYTECODE=", "VLLM_NIXL_SIDE_CHANNEL_PORT=" + strconv.Itoa(side),
			"PYTHONPATH=" + f.connectors,
			"PATH=" + filepath.Join(f.venv, "bin") + string(os.PathListSeparator) + os.Getenv("PATH"),
		},
		log: filepath.Join(f.logs, name+".log"),
	}, nil
}

// roles are the flags of each role in addition to those of all engines.
func (f *fleet) roles() map[string][]string {
	files := func(role string) []string {
		return []string{"--ec-transfer-config", fmt.Sprintf(
			`{%s,"ec_role":%q,"ec_connector_extra_config":{"shared_storage_path":%q}}`, f.release.files(), role, f.storage)}
	}
	blocks := func(role string) []string {
		return []string{"--kv-transfer-config", fmt.Sprintf(`{"kv_connector":"NixlConnector","kv_role":%q,"kv_buffer_device":"cpu"}`, role)}
	}
	return map[string][]string{
		"single": nil,
		"e":      append(files("ec_producer"), "--no-enable-prefix-caching"),
		"pd":     files("ec_consumer"),
		"p":      slices.Concat(files("ec_consumer"), blocks("kv_producer")),
		"d":      blocks("kv_consumer"),
		"de":     slices.Concat(files("ec_consumer"), blocks("kv_consumer")),
	}
}

// stop stops all engines.
func (f *fleet) stop() {
	var wait sync.WaitGroup
	for _, e := range f.engines {
		wait.Go(e.stop)
	}
	wait.Wait()
	clear(f.engines)
}

// addrs are the addresses of engines, in the order of their names.
func (f *fleet) addrs(names []string) []string {
	var list []string
	for _, name := range names {
		list = append(list, f.engines[name].addr)
	}
	return list
}

// dead are the names of engines that have ended without being stopped.
func (f *fleet) dead() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(f.engines)) {
		if !f.engines[name].alive() {
			names = append(names, name)
		}
	}
	return names
}
