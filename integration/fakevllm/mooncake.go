package fakevllm

import (
	"encoding/json"
	"net"
	"net/http"
	"time"
)

// mooncakeParams are MooncakeConnector's kv_transfer_params. Prefill gets the first
// three, decode all of them.
type mooncakeParams struct {
	DoRemoteDecode  bool   `json:"do_remote_decode"`
	DoRemotePrefill bool   `json:"do_remote_prefill"`
	TransferID      string `json:"transfer_id"`
	EngineID        string `json:"remote_engine_id,omitempty"`
	Bootstrap       string `json:"remote_bootstrap_addr,omitempty"`
}

// readMooncake returns the zero value if raw cannot be parsed.
func readMooncake(params json.RawMessage) (m mooncakeParams) {
	_ = json.Unmarshal(params, &m)
	return m
}

// transferWork is one request's KV, which prefill keeps until decode reads it.
type transferWork struct {
	mooncakeParams // as decode must send them
	lost, spent    bool
	expires        time.Time // zero: never
	fingerprint    string
}

// checkMooncakePrefill requires that a request ends because of max_tokens: only then is its KV handed over.
func (x *exchange) checkMooncakePrefill() error {
	o := x.members
	m := readMooncake(o["kv_transfer_params"])
	want := mooncakeParams{DoRemoteDecode: true, TransferID: m.TransferID}
	if m.TransferID == "" || canonical(o["kv_transfer_params"]) != canonical(marshal(want)) {
		return badRequest("kv_transfer_params of a prefill request must have a transfer_id, got %s", o["kv_transfer_params"])
	}
	if !o.is("ignore_eos", "true") {
		return badRequest("ignore_eos of a prefill request must be true, got %s", o["ignore_eos"])
	}
	for _, name := range []string{"stop", "stop_token_ids"} {
		if o.has(name) {
			return badRequest("a prefill request must not have %q: what stops by it is not handed over", name)
		}
	}
	if x.engine.cluster.transfer(m.TransferID) != nil {
		return badRequest("transfer_id %s has been used before", m.TransferID)
	}
	return nil
}

func (x *exchange) checkMooncakeDecode() error {
	raw := x.members["kv_transfer_params"]
	m := readMooncake(raw)
	want := mooncakeParams{DoRemotePrefill: true, TransferID: m.TransferID, EngineID: m.EngineID, Bootstrap: m.Bootstrap}
	if m.TransferID == "" || m.EngineID == "" || m.Bootstrap == "" || canonical(raw) != canonical(marshal(want)) {
		return badRequest("kv_transfer_params of a decode request must have transfer_id, remote_engine_id and remote_bootstrap_addr, got %s", raw)
	}
	return nil
}

// transfer returns the work of a transfer id, nil if the id was never used.
func (c *Cluster) transfer(id string) *transferWork {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.transfers[id]
}

// holdTransfer keeps the KV of the request under its transfer id.
func (x *exchange) holdTransfer() {
	e, m := x.engine, readMooncake(x.members["kv_transfer_params"])
	work := &transferWork{
		mooncakeParams: mooncakeParams{false, true, m.TransferID, *e.uuid.Load(), e.Bootstrap()},
		spent:          e.options.NoHandOver,
		fingerprint:    x.fingerprint(x.members),
	}
	if e.options.KVLease > 0 {
		work.expires = time.Now().Add(e.options.KVLease)
	}
	c := e.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	c.transfers[m.TransferID] = work
}

// pull gives the KV to a decode request. If there is none, it fails at once; vLLM waits for
// minutes.
func (c *Cluster) pull(params json.RawMessage, fingerprint string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := readMooncake(params)
	work := c.transfers[m.TransferID]
	switch {
	case work == nil:
		return engineFailure("unknown transfer_id %s", m.TransferID)
	case work.mooncakeParams != m:
		return engineFailure("remote_engine_id %s or remote_bootstrap_addr %s is not that of the prefill", m.EngineID, m.Bootstrap)
	case work.lost:
		return lateFailure()
	case work.spent:
		return engineFailure("spent transfer_id %s", m.TransferID)
	}
	work.spent = true
	if !work.expires.IsZero() && time.Now().After(work.expires) {
		return engineFailure("transfer_id %s has expired", m.TransferID)
	}
	if fingerprint != work.fingerprint {
		return engineFailure("kv blocks belong to another request")
	}
	return nil
}

// bootstrap is the bootstrap server of a prefill engine. It is started and killed with it.
type bootstrap struct {
	engine *Engine
	addr   string
	life   *life
}

func newBootstrap(e *Engine) (*bootstrap, error) {
	listener, err := listenFree()
	if err != nil {
		return nil, err
	}
	return &bootstrap{engine: e, addr: listener.Addr().String()}, listener.Close()
}

func (b *bootstrap) begin() error {
	listener, err := net.Listen("tcp", b.addr)
	if err != nil {
		return err
	}
	b.life = newLife(listener, b.engine.options.IdleTimeout, b)
	return nil
}

// ServeHTTP answers GET /query as vLLM does.
func (b *bootstrap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Path != "/query" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(marshal(map[string]any{"0": map[string]any{
		"engine_id":   *b.engine.uuid.Load(),
		"worker_addr": map[string]any{"0": map[string]string{"0": "tcp://127.0.0.1:1"}},
	}}))
}

// Bootstrap is the address of the engine's bootstrap server, http://host:port. It does not
// change when the engine is restarted.
func (e *Engine) Bootstrap() string { return "http://" + e.server.addr }

// KillBootstrap stops only the bootstrap server, until the engine is restarted.
func (e *Engine) KillBootstrap() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.life.kill()
	e.server.life.wait()
}
