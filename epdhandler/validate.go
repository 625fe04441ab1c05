package epdhandler

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// contradictions finds options that do not fit together, or that have no effect as the
// others are. Those of a pool that is switched off are none: it may be on again tomorrow.
// It needs no defaults, so that it can be asked where a Caddyfile's line is still known.
func (h *Handler) contradictions() error {
	limited := h.EncodeLimit != 0 || h.PrefillLimit != 0 || h.DecodeLimit != 0
	switch {
	case h.QueueSize != nil && !limited:
		return errors.New("queue_size has no effect without encode_limit, prefill_limit or decode_limit")
	case h.QueueTimeout != 0 && !limited:
		return errors.New("queue_timeout has no effect without encode_limit, prefill_limit or decode_limit")
	case h.UUIDSalt != "" && !h.References && len(h.ECConsumers) == 0:
		return errors.New("uuid_salt has no effect without references or ec_consumers")
	}
	if err := h.memorySuffices(); err != nil {
		return err
	}
	if err := h.consumersFit(); err != nil {
		return err
	}
	return h.bootstrapsFit()
}

// memorySuffices compares the sizes as far as they are known: max_memory may be a default
// still to come.
func (h *Handler) memorySuffices() error {
	if h.MaxMemory <= 0 {
		return nil
	}
	if least := 2 * itemSize * int64(h.MaxMediaItems); h.MaxMemory < least {
		return fmt.Errorf("max_memory (%d bytes) must be %d bytes at least for max_media_items %d: an item counts as %d bytes", h.MaxMemory, least, h.MaxMediaItems, itemSize)
	}
	if h.MaxBodySize <= h.MaxMemory/2 {
		return nil
	}
	return fmt.Errorf("max_memory (%d bytes) must be twice max_body_size (%d bytes) at least, so that one request cannot take all of it", h.MaxMemory, h.MaxBodySize)
}

// consumersFit compares ec_consumers with the pool that consumes embeddings.
func (h *Handler) consumersFit() error {
	if len(h.ECConsumers) == 0 {
		return nil
	}
	if h.EncodeOptional { // seen with vLLM 0.32: it waits 60 s, and then answers 500
		return errors.New("encode_optional does not go with ec_consumers: an instance that embeddings are pushed to waits for them, and encodes nothing itself")
	}
	stage, pool := "decode", h.Decode
	if h.Prefill != nil {
		stage, pool = "prefill", h.Prefill
	}
	if err := covers(h.ECConsumers, "ec_consumers", stage, pool, "tcp://host:port for each data-parallel rank"); err != nil {
		return err
	}
	for upstream, addresses := range h.ECConsumers {
		if len(addresses) == 0 {
			return fmt.Errorf("ec_consumers has no address for '%s'; write one such as tcp://host:port for each data-parallel rank", upstream)
		}
		for _, address := range addresses {
			if !isConsumerAddress(address) {
				return fmt.Errorf("ec_consumers has '%s' for '%s', which is no address of a consumer; write tcp://host:port", address, upstream)
			}
		}
	}
	return nil
}

// covers looks whether an option has a value for each upstream of a pool, and for nobody else.
func covers[V any](values map[string]V, option, stage string, pool *reverseproxy.Handler, example string) error {
	if pool.DynamicUpstreamsRaw != nil {
		return fmt.Errorf("%s needs to know the upstreams of the %s pool; it cannot be dynamic", option, stage)
	}
	for _, upstream := range slices.Sorted(maps.Keys(values)) {
		at := func(u *reverseproxy.Upstream) bool { return u.String() == upstream }
		if !slices.ContainsFunc(pool.Upstreams, at) {
			return fmt.Errorf("%s names '%s', which is no upstream of the %s pool; write it as host:port", option, upstream, stage)
		}
	}
	for _, u := range pool.Upstreams {
		if _, ok := values[u.String()]; !ok {
			return fmt.Errorf("%s has no address for '%s' of the %s pool; write one such as %s", option, u, stage, example)
		}
	}
	return nil
}

// bootstrapsFit compares kv_bootstrap with the prefill pool.
func (h *Handler) bootstrapsFit() error {
	if len(h.KVBootstrap) == 0 || h.Prefill == nil {
		return nil
	}
	if err := covers(h.KVBootstrap, "kv_bootstrap", "prefill", h.Prefill, "http://host:8998"); err != nil {
		return err
	}
	of := make(map[string]string)
	for _, upstream := range slices.Sorted(maps.Keys(h.KVBootstrap)) {
		address := h.KVBootstrap[upstream]
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || address != u.Scheme+"://"+u.Host {
			return fmt.Errorf("kv_bootstrap has '%s' for '%s', which is no address of a bootstrap server; write http://host:8998", address, upstream)
		}
		if other := of[address]; other != "" {
			return fmt.Errorf("kv_bootstrap has '%s' for '%s' and for '%s'; each instance of prefill needs a bootstrap server of its own", address, other, upstream)
		}
		of[address] = upstream
	}
	return nil
}

// isConsumerAddress reports whether encoders can push to an address: tcp://host:port.
func isConsumerAddress(address string) bool {
	hostport, isTCP := strings.CutPrefix(address, "tcp://")
	host, port, err := net.SplitHostPort(hostport)
	return isTCP && err == nil && host != "" && port != ""
}
