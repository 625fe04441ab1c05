package fakevllm

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Role is the stage that an engine serves.
type Role string

// The three roles. A decode engine also serves prefill and decode together: a request
// without KV blocks is prefilled there, and needs the embeddings there.
const (
	Encode  Role = "encode"
	Prefill Role = "prefill"
	Decode  Role = "decode"
)

// Options describes an engine. Only Role is required.
type Options struct {
	Role Role

	// Name is shown in answers: in the member system_fingerprint, and on
	// decode in the header x-engine. The default is the role and the address.
	Name string

	// Addr is where the engine listens. The default is a free port of 127.0.0.1, see FreePort.
	Addr string

	// APIKey, if set, is the bearer token that all requests but GET /health must have.
	APIKey string

	// IdleTimeout is how long an idle connection lives. The default is uvicorn's: 5s.
	IdleTimeout time.Duration

	// Delay is the service time. It ends early if the client goes away.
	Delay time.Duration

	// ChunkDelay is the time between two events of a stream.
	ChunkDelay time.Duration

	// RequireKV makes a decode engine reject requests without kv_transfer_params, except
	// those that never have any: the deployment has a prefill stage. It consumes no embeddings.
	RequireKV bool

	// ComputesPrompts makes a decode engine with RequireKV accept requests without kv_transfer_params
	// as vLLM does: it computes the prompt itself, including the media.
	ComputesPrompts bool

	// KVLease is how long a prefill engine keeps KV blocks that are not read. Default: no limit.
	KVLease time.Duration

	// Mooncake makes prefill and decode engines behave as vLLM 0.32.0 with MooncakeConnector. A
	// prefill engine then has a bootstrap server, at Bootstrap.
	Mooncake bool

	// NoHandOver makes a prefill engine behave as one without a KV connector: its answers
	// have no kv_transfer_params.
	NoHandOver bool

	// PromptDetails makes an engine report in usage how many tokens of the prompt were cached
	// (vLLM's --enable-prompt-tokens-details): CachedTokens, and at decode the tokens that
	// prefill has computed.
	PromptDetails bool
	CachedTokens  int

	// Handles makes an encode engine answer with ec_transfer_params. What it
	// encodes can then be consumed only once, with the handle in them.
	Handles bool

	// Modern makes an engine of vLLM 0.31.0: see the package comment.
	// All engines of a cluster should have the same value.
	Modern bool

	// MaxBatch is the maximum number of images of one encode request, for a modern engine. 0 is no limit.
	MaxBatch int

	// MaxImages is the maximum number of images of one request (vLLM's --limit-mm-per-prompt). 0 is no limit.
	MaxImages int

	// MaxModelLen is the maximum number of tokens of a prompt and its answer (vLLM's --max-model-len), where
	// each byte of text is a token. 0 is no limit.
	MaxModelLen int

	// NoItemIndices makes a modern encode engine name entries by the items' uuids,
	// without positions. An item without a uuid is named by its hash.
	NoItemIndices bool

	// NoMetadata makes a modern encode engine report no shapes, so that references
	// cannot be made.
	NoMetadata bool

	// VaryShapes makes a modern encode engine report different shapes for different
	// items. Otherwise all images have the same shape, and a proxy that confuses
	// them is not detected.
	VaryShapes bool

	// Modalities makes engines behave as vLLM 0.33: encoders report the modality of each
	// entry, and a part may refer to a video and its sound.
	Modalities bool

	// Timing makes a modern encode engine report the timing of videos too, without which
	// references to them cannot be made.
	Timing bool

	// ECExample makes a consumer behave as vLLM 0.32.0 with ECExampleConnector if an
	// embedding is missing: it encodes media itself, and crashes on a reference.
	ECExample bool

	// ConsumerZMQ are the control addresses of a modern prefill or decode
	// engine, one for each data-parallel rank. An encode request names one of
	// them; only that rank can consume the embeddings.
	ConsumerZMQ []string

	// KeepHandles makes a decode engine accept ec_transfer_params together with
	// kv_transfer_params. They have no effect.
	KeepHandles bool

	// Model is the one model that is served, "fake" by default.
	Model string

	// Version is what GET /version answers, "0.11.1" by default.
	Version string

	// Profiling makes an engine answer POST /start_profile and /stop_profile.
	// Without it, they are 404.
	Profiling bool

	// Forget keeps no requests for Requests, to save memory in an engine that
	// runs for a long time.
	Forget bool
}

// withDefaults fills in what does not depend on the address.
func (o Options) withDefaults() Options {
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 5 * time.Second
	}
	if o.Model == "" {
		o.Model = "fake"
	}
	if o.Version == "" {
		o.Version = "0.11.1"
	}
	return o
}

func (o Options) listen() (net.Listener, error) {
	if o.Addr == "" {
		return listenFree()
	}
	return net.Listen("tcp", o.Addr)
}

// Engine is one fake vLLM server.
type Engine struct {
	options Options
	cluster *Cluster
	uuid    atomic.Pointer[string] // like vLLM's engine_id; part of kv_transfer_params
	addr    string
	port    int
	reports reports
	faults  faults

	mu     sync.Mutex // guards what follows
	life   *life
	server *bootstrap // nil without Mooncake
	closed bool
}

// Start runs an engine that shares this cluster's embeddings and KV blocks.
func (c *Cluster) Start(o Options) (*Engine, error) {
	switch o.Role {
	case Encode, Prefill, Decode:
	default:
		return nil, fmt.Errorf("unknown role %q: want %s, %s or %s", o.Role, Encode, Prefill, Decode)
	}
	o = o.withDefaults()
	listener, err := o.listen()
	if err != nil {
		return nil, fmt.Errorf("start %s engine: %w", o.Role, err)
	}
	addr := listener.Addr().(*net.TCPAddr)
	e := &Engine{options: o, cluster: c, addr: addr.String(), port: addr.Port}
	if e.options.Name == "" {
		e.options.Name = string(o.Role) + "-" + e.addr
	}
	c.addConsumers(o.ConsumerZMQ)
	if o.Mooncake && o.Role == Prefill {
		if e.server, err = newBootstrap(e); err != nil {
			return nil, errors.Join(fmt.Errorf("start %s engine: %w", o.Role, err), listener.Close())
		}
	}
	return e, e.begin(listener)
}

// begin starts a life. The caller holds mu or has not published the engine yet.
func (e *Engine) begin(listener net.Listener) error {
	id := randomUUID()
	e.uuid.Store(&id)
	if e.server != nil {
		if err := e.server.begin(); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	e.life = newLife(listener, e.options.IdleTimeout, http.HandlerFunc(e.serve))
	return nil
}

// Addr is the engine's host:port. It stays the same over restarts.
func (e *Engine) Addr() string { return e.addr }

// URL is the engine's base URL, http://host:port.
func (e *Engine) URL() string { return "http://" + e.addr }

// Name is the engine's name in its answers.
func (e *Engine) Name() string { return e.options.Name }

// Kill ends the engine as SIGKILL ends a process: all connections are reset at
// once and new ones are refused. No request is answered, and the KV blocks that
// decode has not read yet are lost.
func (e *Engine) Kill() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.die()
}

func (e *Engine) die() {
	e.life.kill()
	if e.server != nil {
		e.server.life.kill()
	}
	e.cluster.lose(*e.uuid.Load())
}

// wait returns when the goroutines of a killed engine have ended.
func (e *Engine) wait() {
	e.life.wait()
	if e.server != nil {
		e.server.life.wait()
	}
}

// Restart kills the engine if it runs, and listens again on the same address.
// Reports and the fault are kept.
func (e *Engine) Restart() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fmt.Errorf("restart %s: %w", e.Name(), errors.New("engine is closed"))
	}
	e.die()
	e.wait()
	listener, err := net.Listen("tcp", e.addr)
	if err != nil {
		return fmt.Errorf("restart %s: %w", e.Name(), err)
	}
	return e.begin(listener)
}

// Close kills the engine for good and waits until all its requests have ended.
// It may be called more than once.
func (e *Engine) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.die()
	e.wait()
}
