// Package process is what handlers share and what lives through reloads: instances and their
// slots, memory, metrics, and which handlers serve. It knows nothing of what handlers do with it.
package process

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Process is the state of a process. Requests of replaced configurations count in it too.
type Process struct {
	Metrics   *telemetry.Metrics
	Instances *dispatch.Instances
	Memory    memory.Ledger

	mu    sync.Mutex
	sites []*Site
}

// Site is a handler, as others may see it.
type Site struct {
	Encode, Prefill, Decode *engine.Pool // Prefill may be nil

	Gate       *dispatch.Gate                 // in front of decode; nil: there is none
	Bootstraps map[string]*handover.Bootstrap // of instances of prefill
	MaxMemory  int64                          // bytes that bodies may take
}

// Pools are the site's pools, in the order in which a request meets them.
func (s *Site) Pools() []*engine.Pool {
	return slices.DeleteFunc([]*engine.Pool{s.Encode, s.Prefill, s.Decode}, func(p *engine.Pool) bool { return p == nil })
}

// New returns the state of a process that has just begun.
func New() *Process {
	m := telemetry.NewMetrics()
	return &Process{Metrics: m, Instances: dispatch.NewInstances(m)}
}

// Destruct implements caddy.Destructor.
func (*Process) Destruct() error { return nil }

// states holds the state of this process, for as long as there is a handler.
var states = caddy.NewUsagePool()

const key = "epd_proxy"

func use() *Process {
	p, _, _ := states.LoadOrNew(key, func() (caddy.Destructor, error) { return New(), nil }) // never fails
	return p.(*Process)
}

func leave() { _, _ = states.Delete(key) }

// Current returns the state of this process, an empty one if there is no handler.
func Current() *Process {
	p := use()
	defer leave()
	return p
}

// Users are a handler and its requests, which may go on after the handler has been replaced. The
// state of the process lives until all of them are done, so that limits hold for all.
type Users struct {
	n     atomic.Int64
	leave func()
}

// Use returns the state of this process for a handler, which is the first user.
func (u *Users) Use() *Process {
	u.Add()
	u.leave = sync.OnceFunc(leave)
	return use()
}

// Add adds a user.
func (u *Users) Add() { u.n.Add(1) }

// Done removes a user.
func (u *Users) Done() {
	if u.n.Add(-1) == 0 && u.leave != nil {
		u.leave()
	}
}

// Enlist notes that a site serves now. It comes after those that have served before.
func (p *Process) Enlist(s *Site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sites = append(p.sites, s)
	p.renew()
}

// Delist notes that a site serves no more. Its last requests may go on.
func (p *Process) Delist(s *Site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sites = slices.DeleteFunc(p.sites, func(other *Site) bool { return other == s })
	p.renew()
}

func (p *Process) renew() {
	var serving []*dispatch.Dispatcher
	for _, s := range p.sites {
		for _, pool := range s.Pools() {
			serving = append(serving, pool.Dispatcher)
		}
	}
	p.Instances.PutInForce(serving)
}

// Pools are those of all handlers that serve, of the newest one last.
func (p *Process) Pools() (all []*engine.Pool) {
	for _, s := range p.Sites() {
		all = append(all, s.Pools()...)
	}
	return all
}

// Sites are the handlers that serve, the newest one last.
func (p *Process) Sites() []*Site {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sites)
}
