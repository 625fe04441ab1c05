package fakevllm

import (
	"slices"
	"strconv"
)

// rankHeader selects one of an engine's data-parallel ranks.
const rankHeader = "X-Data-Parallel-Rank"

// ranked reports whether the engine has several ranks, each with embeddings
// of its own.
func (x *exchange) ranked() bool {
	o := x.engine.options
	return o.Modern && o.Role != Encode && len(o.ConsumerZMQ) > 1
}

// checkRank requires the header on a request whose embeddings were delivered to a rank of
// this engine, and rejects it on others.
func (x *exchange) checkRank() error {
	if !x.ranked() {
		return nil
	}
	got := x.r.Header.Values(rankHeader)
	ranks := x.deliveredTo()
	if len(ranks) == 0 && len(got) > 0 {
		return badRequest("header %s must not reach an engine: no embedding was delivered to a rank of it", rankHeader)
	}
	for _, rank := range ranks {
		if want := []string{strconv.Itoa(rank)}; !slices.Equal(got, want) {
			return badRequest("header %s must be %q, where the embeddings are, got %q", rankHeader, want, got)
		}
	}
	return nil
}

// deliveredTo returns the ranks of this engine to which the request's transfers were
// delivered. Other transfers are checked when they are consumed.
func (x *exchange) deliveredTo() []int {
	b, err := x.brought()
	if err != nil {
		return nil
	}
	var ranks []int
	for _, a := range b.asked {
		if rank := slices.Index(x.engine.options.ConsumerZMQ, x.engine.cluster.consumerOf(a.id)); rank >= 0 {
			ranks = append(ranks, rank)
		}
	}
	return ranks
}

// consumerOf is the address that a transfer was for.
func (c *Cluster) consumerOf(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.deliveries[id]; d != nil {
		return d.consumer
	}
	return ""
}
