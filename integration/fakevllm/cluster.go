package fakevllm

import (
	"cmp"
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
	handles    map[string]*offer      // by handle, unspent ones
	encoded    map[string]string      // mm_hashes, by referenceKey
	deliveries map[string]*delivery   // by transfer id, spent ones too
	consumers  map[string]bool        // by control address
	blocks     map[int64]*prefillWork // by block id
	lastBlock  int64
	transfers  map[string]*transferWork // by MooncakeConnector's transfer id, spent ones too
}

// NewCluster returns a cluster without engines. It needs no closing.
func NewCluster() *Cluster {
	return &Cluster{
		embeddings: make(map[string]*embedding),
		handles:    make(map[string]*offer),
		encoded:    make(map[string]string),
		deliveries: make(map[string]*delivery),
		consumers:  make(map[string]bool),
		blocks:     make(map[int64]*prefillWork),
		transfers:  make(map[string]*transferWork),
	}
}

// embedding is one encoded media item.
type embedding struct {
	shared bool // on shared storage: any engine may load it, any number of times

	// The fields below are set only for embeddings of modern encoders.
	item      item
	metadata  string          // flattened, canonical; empty if none was reported
	names     map[string]bool // its keys in answers
	delivered bool            // at least once sent to one consumer
}

// embeddingOf returns the entry of a hash, made if needed. The caller holds mu.
func (c *Cluster) embeddingOf(hash string) *embedding {
	e := c.embeddings[hash]
	if e == nil {
		e = &embedding{names: make(map[string]bool)}
		c.embeddings[hash] = e
	}
	return e
}

// offer is the embedding that a transfer handle gives access to.
type offer struct {
	hash   string
	name   string // the entry's key, as issued
	opaque string // the entry as it must come back

	// delivered says that the embedding also needs the transfer id of each occurrence.
	delivered bool
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
	c.embeddingOf(hash)
	c.handles[t.Handle] = &offer{hash: hash, name: hash, opaque: t.opaque()}
}

// consume loads the embeddings that a request needs, at a consumer with these options. The handles and
// transfer ids in the request are spent even if it fails: the transfer has begun.
func (c *Cluster) consume(items []item, b brought, o Options) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	redeemed, err := c.redeem(items, b.entries, o.ECExample)
	taken, errTake := c.take(items, b.asked, o.ConsumerZMQ)
	if err := cmp.Or(err, errTake); err != nil {
		return err
	}
	for n, i := range items {
		if o.ECExample && c.embeddings[i.hash] == nil {
			continue // the consumer encodes that itself
		}
		if err := c.available(n, i, redeemed[i.hash], taken[n]); err != nil {
			return err
		}
	}
	return nil
}

// available checks that an item's embedding is available to the consumer. The caller holds mu.
func (c *Cluster) available(n int, i item, o *offer, d *delivery) error {
	e := c.embeddings[i.hash]
	switch {
	case i.ready || i.cached && c.known(i):
	case e == nil:
		return engineFailure("multimodal embedding missing: item %d (%s)", n, i.kind)
	case e.shared:
	case d != nil && (o != nil || !d.handle):
	case o != nil && !o.delivered:
	case e.delivered && d == nil:
		return engineFailure("embedding not delivered: item %d (%s) has no transfer id in ec_items", n, i.kind)
	default:
		return engineFailure("unknown or spent transfer handle: item %d (%s) has none in ec_transfer_params", n, i.kind)
	}
	return nil
}

// known reports whether the media of an item that has only a uuid were sent in an earlier
// request with that uuid. The caller holds mu.
func (c *Cluster) known(i item) bool { return c.encoded[i.referenceKey()] != "" }

// redeem spends the handles of ec_transfer_params and returns them by the hashes that they belong to.
// A lenient consumer works without an embedding that is missing. The caller holds mu.
func (c *Cluster) redeem(items []item, entries map[string]presented, lenient bool) (map[string]*offer, error) {
	redeemed := make(map[string]*offer)
	var failure error // the first; all handles are spent anyway
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		t := entries[name]
		o := c.spendHandle(name, t.handle)
		switch {
		case failure != nil:
		case !c.wanted(items, name):
			failure = engineFailure("ec_transfer_params: %s is no item of this request", name)
		case o == nil && t.opaque == "{}" && (lenient || c.announced(items, name)): // it has only a shape
		case o == nil:
			failure = engineFailure("unknown or spent transfer handle: %q of %s", t.handle, name)
		case t.opaque != o.opaque:
			failure = engineFailure("ec_transfer_params: the entry of %s is not as issued: got %s, want %s", name, t.opaque, o.opaque)
		}
		if o != nil {
			redeemed[o.hash] = o
		}
	}
	return redeemed, failure
}

// wanted reports whether a request may contain an entry of this name. A part that
// is an embedding may refer to any entry. The caller holds mu.
func (c *Cluster) wanted(items []item, name string) bool {
	return c.announced(items, name) || slices.ContainsFunc(items, func(i item) bool { return i.hash == name || i.ready })
}

// announced reports whether a modern encoder has reported one of the items under
// this name. The caller holds mu.
func (c *Cluster) announced(items []item, name string) bool {
	return slices.ContainsFunc(items, func(i item) bool {
		e := c.embeddings[i.hash]
		return e != nil && e.names[name]
	})
}

// spendHandle spends the handle under this name and returns its offer, nil if there is none.
// The caller holds mu.
func (c *Cluster) spendHandle(name, handle string) *offer {
	o := c.handles[handle]
	if o == nil || o.name != name {
		return nil
	}
	delete(c.handles, handle)
	return o
}

// spend spends all handles and transfer ids of a request.
func (c *Cluster) spend(b brought, kv json.RawMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.redeem(nil, b.entries, false)
	_, _ = c.take(nil, b.asked, nil)
	if work := c.transfers[readMooncake(kv).TransferID]; work != nil {
		work.spent = true
	}
	if work, err := c.findWork(kv); err == nil {
		c.free(work)
	}
}
