package fakevllm

import (
	"encoding/json"
	"time"
)

// kvParams is a prefill engine's kv_transfer_params: where decode reads the blocks.
type kvParams struct {
	DoRemotePrefill bool    `json:"do_remote_prefill"`
	DoRemoteDecode  bool    `json:"do_remote_decode"`
	RemoteBlockIDs  []int64 `json:"remote_block_ids"`
	RemoteEngineID  string  `json:"remote_engine_id"`
	RemoteRequestID string  `json:"remote_request_id"`
	RemoteHost      string  `json:"remote_host"`
	RemotePort      int     `json:"remote_port"`
}

// prefillWork is one request's KV, held until decode has read it.
type prefillWork struct {
	engine      string    // the engine that has it in its memory
	lost        bool      // its engine was killed
	expires     time.Time // when the blocks are freed; zero: never
	params      string    // as issued, canonical
	blocks      []int64
	fingerprint string
}

// blocksPerPrefill is more than one, so that lists of block ids have several elements.
const blocksPerPrefill = 3

// hold keeps a prefilled request under fresh block ids, which it adds to the parameters,
// until the lease ends. Then vLLM reuses the blocks, even while decode reads them; the
// fake engine answers a late decode request with an error instead.
func (c *Cluster) hold(params kvParams, fingerprint string, lease time.Duration) kvParams {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range blocksPerPrefill {
		c.lastBlock++
		params.RemoteBlockIDs = append(params.RemoteBlockIDs, c.lastBlock)
	}
	work := &prefillWork{
		engine:      params.RemoteEngineID,
		params:      canonical(marshal(params)),
		blocks:      params.RemoteBlockIDs,
		fingerprint: fingerprint,
	}
	if lease > 0 {
		work.expires = time.Now().Add(lease)
	}
	for _, id := range work.blocks {
		c.blocks[id] = work
	}
	return params
}

// read gives the KV to a decode request. The blocks are freed even if the request is
// the wrong one: they have been read.
func (c *Cluster) read(params json.RawMessage, fingerprint string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	work, err := c.findWork(params)
	if err != nil {
		return err
	}
	c.free(work)
	if !work.expires.IsZero() && time.Now().After(work.expires) {
		return engineFailure("unknown or already freed kv blocks: the lease is over")
	}
	if work.lost {
		return lateFailure()
	}
	if got := canonical(params); got != work.params {
		return engineFailure("kv_transfer_params are not as issued: got %s, want %s", got, work.params)
	}
	if fingerprint != work.fingerprint {
		return engineFailure("kv blocks belong to another request")
	}
	return nil
}

// findWork looks up the blocks that kv_transfer_params name. The caller holds mu.
func (c *Cluster) findWork(params json.RawMessage) (*prefillWork, error) {
	var named struct {
		Blocks []int64 `json:"remote_block_ids"`
	}
	if err := json.Unmarshal(params, &named); err != nil || len(named.Blocks) == 0 {
		return nil, engineFailure("unknown or already freed kv blocks: kv_transfer_params name none: %s", params)
	}
	for _, id := range named.Blocks {
		if c.blocks[id] == nil {
			return nil, engineFailure("unknown or already freed kv blocks: %d", id)
		}
	}
	return c.blocks[named.Blocks[0]], nil
}

// lose drops all KV of an engine that was killed.
func (c *Cluster) lose(engine string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, work := range c.blocks {
		if work.engine == engine {
			work.lost = true
		}
	}
	for _, work := range c.transfers {
		if work.EngineID == engine {
			work.lost = true
		}
	}
}

// free forgets the blocks. The caller holds mu.
func (c *Cluster) free(work *prefillWork) {
	for _, id := range work.blocks {
		delete(c.blocks, id)
	}
}
