package epdhandler

import (
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// weighted is Caddy's weighted_round_robin for a list that may lack instances. Caddy's goes
// by the places in the list that it is given; this one by those in the whole of it, and
// shares what a missing instance would get among the others by their weights.
type weighted struct {
	weights []int

	mu   sync.Mutex
	lead []int // of each instance, over what it has got
}

// ownWeights replaces weighted_round_robin and leaves other policies as they are.
func ownWeights(policy reverseproxy.Selector) reverseproxy.Selector {
	if p, ok := policy.(*reverseproxy.WeightedRoundRobinSelection); ok {
		return &weighted{weights: p.Weights, lead: make([]int, len(p.Weights))}
	}
	return policy
}

// weight is that of the i-th instance. Those that are not named have none.
func weight(weights []int, i int) int {
	if i < len(weights) {
		return weights[i]
	}
	return 0
}

// Select implements reverseproxy.Selector: each candidate gains its weight, and the one that
// leads is chosen and falls back by what all have gained.
func (p *weighted) Select(fit reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	var chosen *reverseproxy.Upstream
	best, gained := -1, 0
	for i, u := range callOf(r.Context()).upstreams {
		if len(fit) == 0 || i == len(p.weights) {
			break
		}
		if u != fit[0] {
			continue
		}
		fit = fit[1:] // in the same order
		if p.weights[i] == 0 {
			continue
		}
		p.lead[i] += p.weights[i]
		gained += p.weights[i]
		if best < 0 || p.lead[i] > p.lead[best] {
			best, chosen = i, u
		}
	}
	if chosen != nil {
		p.lead[best] -= gained
	}
	return chosen
}

// Interface guard
var _ reverseproxy.Selector = (*weighted)(nil)
