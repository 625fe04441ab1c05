package dispatch

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Some of Caddy's policies do not fit the candidates of a dispatcher, and are replaced by ones of
// the same meaning. They find the [Ask] of a request in its context.

type askKey struct{}

// WithAsk returns the context of a request that asks a policy.
func WithAsk(ctx context.Context, a *Ask) context.Context { return context.WithValue(ctx, askKey{}, a) }

func askOf(r *http.Request) *Ask { return r.Context().Value(askKey{}).(*Ask) }

// Fit returns the policy that stands in for one of Caddy's, or the policy itself.
func Fit(policy reverseproxy.Selector) reverseproxy.Selector {
	switch p := policy.(type) {
	case *reverseproxy.WeightedRoundRobinSelection:
		return &weighted{weights: p.Weights, lead: make([]int, len(p.Weights))}
	case *reverseproxy.LeastConnSelection:
		return leastLoaded{}
	case *reverseproxy.RandomChoiceSelection:
		return leastLoaded{choose: p.Choose}
	}
	return policy
}

// WeightsOf returns the weights of a policy, nil if it has none.
func WeightsOf(policy reverseproxy.Selector) []int {
	if p, ok := policy.(*weighted); ok {
		return p.weights
	}
	return nil
}

// weighted is Caddy's weighted_round_robin for a list that may lack instances: its weights go by the
// places in the whole list, and missing instances' shares to the others by their weights.
type weighted struct {
	weights []int

	mu   sync.Mutex
	lead []int // of each instance, over what it has got
}

// Select implements reverseproxy.Selector: each candidate gains its weight, and the one that
// leads is chosen and falls back by what all have gained.
func (p *weighted) Select(fit reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	var chosen *reverseproxy.Upstream
	best, gained := 0, 0
	for i, u := range askOf(r).Upstreams() {
		if len(fit) == 0 || u != fit[0] {
			continue
		}
		fit = fit[1:] // in the same order
		if i < len(p.weights) && p.weights[i] > 0 {
			p.lead[i] += p.weights[i]
			gained += p.weights[i]
			if chosen == nil || p.lead[i] > p.lead[best] {
				best, chosen = i, u
			}
		}
	}
	if chosen != nil {
		p.lead[best] -= gained
	}
	return chosen
}

// leastLoaded is Caddy's least_conn, and its random_choose, which looks at some candidates
// only. It counts reservations as well as requests that have been sent: else all that come while
// encoders work would choose the same instance.
type leastLoaded struct {
	choose int // how many candidates are looked at; 0: all
}

// Select implements reverseproxy.Selector. Equals are chosen at random.
func (p leastLoaded) Select(fit reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) (best *reverseproxy.Upstream) {
	rand.Shuffle(len(fit), func(i, j int) { fit[i], fit[j] = fit[j], fit[i] })
	if p.choose > 0 && p.choose < len(fit) {
		fit = fit[:p.choose]
	}
	v, least := askOf(r).view, 0
	for _, u := range fit {
		if load := u.NumRequests() + int(v.of(u).reserved.Load()); best == nil || load < least {
			best, least = u, load
		}
	}
	return best
}
