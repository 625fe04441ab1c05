//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// parts are the parts of the suite.
var parts = []string{"differential", "faults", "bench"}

// Estimates of time, memory and disk, on two cores.
const (
	installTime  = 6 * time.Minute
	launchTime   = 40 * time.Second // an engine
	requestTime  = 200 * time.Millisecond
	prefillTime  = 300 * time.Millisecond // additional, with a prefill pool
	faultTime    = 90 * time.Second
	benchTime    = rounds * 2 * time.Minute
	engineMemory = 2.4 // GB
	otherMemory  = 1.5
	releaseDisk  = 8.0
)

// plan reads the flags.
func plan(ctx context.Context, args []string) (*suite, error) {
	s := &suite{direct: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, report: report{reasons: map[string]int{}}}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	flags := flag.NewFlagSet("vllm", flag.ContinueOnError)
	all := flags.Bool("all", false, "all models, topologies and parts, unless other flags select some")
	names := map[string]*string{}
	for name, list := range map[string][]string{"releases": texts(releases), "models": modelNames(models), "parts": parts} {
		names[name] = flags.String(name, "", fmt.Sprintf("`list` of: %s, or all (default %s)", strings.Join(list, ", "), list[0]))
	}
	topology := flags.String("topologies", "", "regular `expression` for names of topologies (differential; default E+PD and E+P+D)")
	request := flags.String("requests", "", "regular `expression` for names of requests (differential) and faults")
	flags.StringVar(&s.dir, "dir", filepath.Join(cache, "epd_proxy-vllm"), "directory for installations, models and logs")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument: %s", flags.Arg(0))
	}
	wanted := func(name string, known []string, all bool) ([]string, error) {
		if all && *names[name] == "" {
			return known, nil
		}
		return choose(name, *names[name], known)
	}
	chosen, err := wanted("releases", texts(releases), false)
	if err != nil {
		return nil, err
	}
	for _, name := range chosen {
		s.releases = append(s.releases, release(name))
	}
	if chosen, err = wanted("models", modelNames(models), *all); err != nil {
		return nil, err
	}
	s.models = slices.DeleteFunc(slices.Clone(models), func(m model) bool { return !slices.Contains(chosen, m.name) })
	if s.parts, err = wanted("parts", parts, *all); err != nil {
		return nil, err
	}
	if err := s.filter(*topology, *request, *all); err != nil {
		return nil, err
	}
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return nil, err
	}
	s.caddy = filepath.Join(s.dir, "caddy")
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("not in the repository: %w", err)
	}
	s.root = strings.TrimSpace(string(out))
	s.python, err = findPython(ctx)
	return s, err
}

// filter selects topologies and requests by name.
func (s *suite) filter(topology, request string, all bool) error {
	where, err := regexp.Compile(topology)
	if err != nil {
		return err
	}
	what, err := regexp.Compile(request)
	if err != nil {
		return err
	}
	s.match = what.MatchString
	for _, t := range topologies {
		if where.MatchString(t.name) && (t.quick || all || topology != "") {
			s.topologies = append(s.topologies, t)
		}
	}
	if len(s.topologies) == 0 {
		return fmt.Errorf("no topology matches %q", topology)
	}
	return nil
}

// choose returns the names of a list if all are known; without a list, the first known name.
func choose(what, names string, known []string) ([]string, error) {
	switch names {
	case "":
		return known[:1], nil
	case "all":
		return known, nil
	}
	chosen := strings.Split(names, ",")
	for _, name := range chosen {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("%s: %q is not one of %s", what, name, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

func texts(list []release) (names []string) {
	for _, r := range list {
		names = append(names, string(r))
	}
	return names
}

func modelNames(list []model) (names []string) {
	for _, m := range list {
		names = append(names, m.name)
	}
	return names
}

func (s *suite) has(part string) bool { return slices.Contains(s.parts, part) }

// needs prints what the run will need before it begins, and fails if there is not enough memory.
func (s *suite) needs() error {
	engines, disk, duration := s.estimate()
	if engines == 0 {
		return errors.New("nothing to do: no topology or fault of these releases matches")
	}
	memory := engineMemory*float64(engines) + otherMemory
	fmt.Printf(`vLLM %s; models: %s; parts: %s
It needs Linux on x86-64, Go, Python 3.11 or 3.12, access to PyPI and to Go's modules, and
%6.0f GB of memory, for %d engines at a time
%6.0f GB of disk in %s
%6.0f minutes on two cores
`, strings.Join(texts(s.releases), ", "), strings.Join(modelNames(s.models), ", "), strings.Join(s.parts, ", "),
		memory, engines, disk, s.dir, duration.Minutes())
	if there, err := availableMemory(); err == nil && there < memory {
		return fmt.Errorf("only %.0f GB of memory are free", there)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &fs); err == nil {
		if there := float64(fs.Bavail) * float64(fs.Bsize) / 1e9; there < disk {
			return fmt.Errorf("only %.0f GB of disk are free", there)
		}
	}
	return nil
}

// estimate returns how many engines run at a time, how much more disk is needed, in GB, and how long the run takes.
func (s *suite) estimate() (engines int, disk float64, duration time.Duration) {
	duration = time.Minute // Caddy
	for _, r := range s.releases {
		if !r.installed(filepath.Join(s.dir, string(r))) {
			disk += releaseDisk
			duration += installTime
		}
		for _, m := range s.models {
			n, d := s.estimateModel(r, m)
			engines, duration = max(engines, n), duration+d
		}
	}
	return engines, disk, duration
}

func (s *suite) estimateModel(r release, m model) (engines int, duration time.Duration) {
	running := []string{"single"}
	launch := func(names ...string) {
		for _, name := range names {
			if !slices.Contains(running, name) {
				duration += launchTime
			}
		}
		running = names
		engines = max(engines, len(names))
	}
	if s.has("differential") {
		n := time.Duration(2 * len(m.list(r, "")))
		duration += launchTime + n*requestTime/2
		for i, t := range s.topologiesOf(r) {
			if i == 0 {
				launch(append(t.engines(), "single")...)
			}
			launch(t.engines()...)
			duration += n * requestTime
			if len(t.prefill) > 0 {
				duration += n * prefillTime
			}
		}
	}
	if s.has("faults") {
		for _, f := range s.faultsOf(r) {
			launch(append(f.topology.engines(), "single")...)
			duration += faultTime
		}
	}
	if s.has("bench") {
		launch("e1", "pd1")
		duration += benchTime
	}
	return engines, duration
}

// availableMemory is the memory, in GB, that Linux can provide without swapping.
func availableMemory() (float64, error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kB float64
		if n, _ := fmt.Sscanf(lines.Text(), "MemAvailable: %f kB", &kB); n == 1 {
			return kB / 1e6, nil
		}
	}
	return 0, errors.New("no MemAvailable")
}
