package fakevllm

import (
	"encoding/json"
	"maps"
	"slices"
	"sync"
)

// Cluster is what real engines share: the embeddings that encoders put into the
// EC connector, and the KV blocks that prefill engines hold for decode.
type Cluster struct {
	mu         sync.Mutex
	embeddings map[string]*embedding  // by mm_hash
	blocks     map[int64]*prefillWork // by block id
	lastBlock  int64
}

// NewCluster returns a cluster without engines. It needs no closing.
func NewCluster() *Cluster {
	return &Cluster{
		embeddings: make(map[string]*embedding),
		blocks:     make(map[int64]*prefillWork),
	}
}

// embedding is one encoded media item.
type embedding struct {
	shared  bool              // on shared storage: everybody may load it, as often as wanted
	handles map[string]string // unspent transfer handles, each with its entry as it must come back
}

// embeddingOf returns the entry of a hash, made if needed. The caller holds mu.
func (c *Cluster) embeddingOf(hash string) *embedding {
	e := c.embeddings[hash]
	if e == nil {
		e = &embedding{handles: make(map[string]string)}
		c.embeddings[hash] = e
	}
	return e
}

// share stores what an encoder without handles has encoded.
func (c *Cluster) share(hash string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.embeddingOf(hash).shared = true
}

// offer stores what an encoder with handles has encoded.
func (c *Cluster) offer(hash string, t transfer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.embeddingOf(hash).handles[t.Handle] = t.opaque()
}

// consume loads the embeddings that a request needs. The handles that it
// presents are spent even if it fails: the transfer has begun.
func (c *Cluster) consume(items []item, transfers json.RawMessage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	redeemed, err := c.redeem(items, transfers)
	if err != nil {
		return err
	}
	for n, i := range items {
		e := c.embeddings[i.hash]
		switch {
		case i.ready() || redeemed[i.hash]:
		case e == nil:
			return engineFailure("multimodal embedding missing: item %d (%s)", n, i.kind)
		case !e.shared:
			return engineFailure("unknown or spent transfer handle: item %d (%s) has none in ec_transfer_params", n, i.kind)
		}
	}
	return nil
}

// redeem spends the handles of ec_transfer_params and returns the hashes that they are for.
func (c *Cluster) redeem(items []item, transfers json.RawMessage) (map[string]bool, error) {
	presented, err := readTransfers(transfers)
	if err != nil {
		return nil, err
	}
	redeemed := make(map[string]bool)
	var failure error // the first; all handles are spent anyway
	for _, hash := range slices.Sorted(maps.Keys(presented)) {
		t := presented[hash]
		issued, valid := c.spendHandle(hash, t.handle)
		switch {
		case failure != nil:
		case !wanted(items, hash):
			failure = engineFailure("ec_transfer_params: %s is no item of this request", hash)
		case !valid:
			failure = engineFailure("unknown or spent transfer handle: %q of %s", t.handle, hash)
		case t.opaque != issued:
			failure = engineFailure("ec_transfer_params: the entry of %s is not as issued: got %s, want %s", hash, t.opaque, issued)
		}
		redeemed[hash] = true
	}
	return redeemed, failure
}

// wanted reports whether a request may bring this hash. A part that is an
// embedding may refer to any.
func wanted(items []item, hash string) bool {
	return slices.ContainsFunc(items, func(i item) bool { return i.hash == hash || i.ready() })
}

// spendHandle returns the entry that was issued with the handle. The caller holds mu.
func (c *Cluster) spendHandle(hash, handle string) (issued string, valid bool) {
	e := c.embeddings[hash]
	if e == nil {
		return "", false
	}
	issued, valid = e.handles[handle]
	delete(e.handles, handle)
	return issued, valid
}

// spend takes all that a request brings away from it: an engine has read it,
// and failed afterwards.
func (c *Cluster) spend(o object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.redeem(nil, o["ec_transfer_params"])
	if work, err := c.findWork(o["kv_transfer_params"]); err == nil {
		c.free(work)
	}
}
