package fakevllm

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// transferID names one delivery of one embedding.
var transferID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// target is where the embeddings of an encode request are delivered.
type target struct {
	consumer string
	ids      []string // of the transfers, one for each item
}

// delivery is one transfer to one consumer.
type delivery struct {
	consumer string // its control address
	hash     string // of what is delivered, empty until it is encoded
	name     string // the entry's key in the encoder's answer
	handle   bool   // the consumer also needs a handle
	spent    bool
}

// addConsumers registers control addresses. They stay registered after their engine has
// ended, because encoders do not notice that.
func (c *Cluster) addConsumers(addresses []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, address := range addresses {
		c.consumers[address] = true
	}
}

// readTarget reads an encode request's ec_transfer_params.
func (x *exchange) readTarget() error {
	if !x.members.has("ec_transfer_params") {
		return nil
	}
	o, err := exactly(x.members["ec_transfer_params"], "consumer_zmq", "ec_items")
	if err != nil {
		return badRequest("ec_transfer_params of an encode request: %v", err)
	}
	if x.target.consumer, err = o.text("consumer_zmq"); err != nil {
		return badRequest("ec_transfer_params: %v", err)
	}
	items, err := array(o["ec_items"])
	if err != nil || len(items) != len(x.prompt.items) {
		return badRequest("ec_items: want a list of %d, one for each item, got %s", len(x.prompt.items), o["ec_items"])
	}
	for n, raw := range items {
		id, err := readTransferID(raw)
		if err != nil {
			return badRequest("ec_items[%d]: %v", n, err)
		}
		x.target.ids = append(x.target.ids, id)
	}
	return nil
}

func readTransferID(raw json.RawMessage) (string, error) {
	o, err := exactly(raw, "transfer_id")
	if err != nil {
		return "", err
	}
	id, _ := stringOf(o["transfer_id"])
	if !transferID.MatchString(id) {
		return "", fmt.Errorf("transfer_id must be 32 hex digits in lower case, got %s", o["transfer_id"])
	}
	return id, nil
}

// claimTransfers marks the ids as used, even if the request fails: another attempt
// needs new ones.
func (x *exchange) claimTransfers() error {
	if x.target.consumer == "" {
		return nil
	}
	return x.engine.cluster.claim(x.target)
}

func (c *Cluster) claim(t target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.consumers[t.consumer] {
		return engineFailure("consumer_zmq: no consumer at %s", t.consumer)
	}
	for _, id := range t.ids {
		if c.deliveries[id] != nil {
			return engineFailure("transfer id used before: %s", id)
		}
		c.deliveries[id] = &delivery{consumer: t.consumer}
	}
	return nil
}

// asked is an entry of a consumer's ec_items.
type asked struct{ name, id string }

// readAsked reads the ec_items that are in a consumer's ec_transfer_params.
func readAsked(params object) ([]asked, error) {
	raw, there := params["ec_items"]
	if !there {
		return nil, nil
	}
	items, err := array(raw)
	if err != nil || len(items) == 0 {
		return nil, engineFailure("ec_items: want a list that is not empty, got %s", raw)
	}
	var all []asked
	for n, raw := range items {
		o, err := exactly(raw, "mm_hash", "transfer_id")
		if err != nil {
			return nil, engineFailure("ec_items[%d]: %v", n, err)
		}
		name, _ := stringOf(o["mm_hash"])
		id, _ := stringOf(o["transfer_id"])
		all = append(all, asked{name, id})
	}
	return all, nil
}

// take spends the transfers that are asked for, and returns the one of each
// item. The caller holds mu.
func (c *Cluster) take(items []item, all []asked, addresses []string) ([]*delivery, error) {
	taken := make([]*delivery, len(items))
	var failure error // the first; all transfers are spent anyway
	from := 0         // items before it are done
	for _, a := range all {
		d, err := c.spendTransfer(a, addresses)
		at := -1
		if err == nil {
			at = slices.IndexFunc(items[from:], func(i item) bool { return i.hash == d.hash })
		}
		switch {
		case failure != nil:
		case err != nil:
			failure = err
		case at < 0:
			failure = engineFailure("ec_items: %s is no item of this request, or not in their order", a.name)
		default:
			taken[from+at] = d
			from += at + 1
		}
	}
	return taken, failure
}

// spendTransfer fails for every consumer but the one that the transfer was for.
func (c *Cluster) spendTransfer(a asked, addresses []string) (*delivery, error) {
	d := c.deliveries[a.id]
	if d == nil || d.hash == "" || d.spent {
		return nil, engineFailure("ec_items: unknown or spent transfer id: %s", a.id)
	}
	d.spent = true
	if d.name != a.name {
		return nil, engineFailure("ec_items: transfer id %s is of %s, not of %s", a.id, d.name, a.name)
	}
	if !slices.Contains(addresses, d.consumer) {
		return nil, engineFailure("ec_items: transfer id %s went to another consumer: %s", a.id, d.consumer)
	}
	return d, nil
}

// exactly reads an object that has these members and no others.
func exactly(raw json.RawMessage, names ...string) (object, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	if got := slices.Sorted(maps.Keys(o)); !slices.Equal(got, names) {
		return nil, fmt.Errorf("want the members %q, got %q", names, got)
	}
	return o, nil
}
