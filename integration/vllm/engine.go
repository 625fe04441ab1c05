//go:build unix

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = 15 * time.Minute // several engines that start at once on two cores
	stopTime  = 20 * time.Second
)

// engine is one vLLM.
type engine struct {
	name string
	addr string // does not change when it is restarted
	args []string
	env  []string
	log  string

	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (e *engine) url() string { return "http://" + e.addr }

// start starts the process in its own process group: vLLM's workers end with it, and Ctrl-C
// reaches only this program.
func (e *engine) start() error {
	file, err := os.OpenFile(e.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	e.cmd = exec.Command(e.args[0], e.args[1:]...)
	e.cmd.Env = append(os.Environ(), e.env...)
	e.cmd.Stdout, e.cmd.Stderr = file, file
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := e.cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	e.done = done
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(done)
	}(e.cmd)
	return nil
}

// ready waits until the engine answers.
func (e *engine) ready(ctx context.Context) error {
	return until(ctx, startTime, e.running(func(ctx context.Context) bool {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		resp, err := get(ctx, e.url()+"/health", "*/*")
		return err == nil && resp.Body.Close() == nil
	}))
}

// listens waits until the engine accepts connections.
func (e *engine) listens(ctx context.Context) error {
	return until(ctx, time.Minute, e.running(func(ctx context.Context) bool {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.addr)
		return err == nil && conn.Close() == nil
	}))
}

// running makes a condition fail when the process has ended.
func (e *engine) running(is func(context.Context) bool) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		if !e.alive() {
			return false, fmt.Errorf("%s has ended; the end of %s:\n%s", e.name, e.log, tail(e.log))
		}
		return is(ctx), nil
	}
}

// alive says whether the process runs.
func (e *engine) alive() bool {
	if e.done == nil {
		return false
	}
	select {
	case <-e.done:
		return false
	default:
		return true
	}
}

// signal sends a signal to the engine and its workers, if it was ever started.
func (e *engine) signal(s syscall.Signal) {
	if e.done != nil {
		_ = syscall.Kill(-e.cmd.Process.Pid, s)
	}
}

// kill ends the engine like a crash.
func (e *engine) kill() {
	e.signal(syscall.SIGKILL)
	<-e.done
}

// stop ends the engine and its workers in any state.
func (e *engine) stop() {
	if e.done == nil {
		return
	}
	e.signal(syscall.SIGCONT)
	e.signal(syscall.SIGTERM)
	select {
	case <-e.done:
	case <-time.After(stopTime):
	}
	e.kill()
}

// tail is the end of a log.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// host is where everything listens.
const host = "127.0.0.1"

func local(port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// vllm is the command of a virtual environment.
func vllm(venv string) string { return filepath.Join(venv, "bin", "vllm") }
