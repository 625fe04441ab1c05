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

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

// validate returns the first error of the configuration, and the option that it is about. The defaults
// must be set. Options of a disabled pool are not errors, because the pool may be enabled again.
func (h *Handler) validate() (option string, err error) {
	if option, err := h.checkNumbers(); err != nil {
		return option, err
	}
	queues := h.EncodeLimit != 0 || h.PrefillLimit != 0 || h.DecodeLimit != 0
	pushes := len(h.ECConsumers) > 0
	for _, check := range []struct {
		option string
		find   func() error
	}{
		{"encode", func() error { return checkPool("encode", "e1:8001 e2:8001", h.Encode) }},
		{"prefill", func() error { return checkPool("prefill", "p1:8002", h.Prefill) }},
		{"decode", func() error { return checkPool("decode", "pd1:8003 pd2:8003", h.Decode) }},
		{"media_sources", h.checkMediaSources},
		{"queue_size", unless(queues || *h.QueueSize == defaultQueueSize,
			"queue_size has no effect without encode_limit, prefill_limit or decode_limit")},
		{"queue_timeout", unless(queues || h.QueueTimeout == defaultQueueTimeout,
			"queue_timeout has no effect without encode_limit, prefill_limit or decode_limit")},
		{"uuid_salt", unless(h.UUIDSalt == "" || h.References || pushes, "uuid_salt has no effect without references or ec_consumers")},
		{"encode_optional", unless(!h.EncodeOptional || !pushes, // vLLM 0.32 would wait 60 s for the push, and then answer 500
			"encode_optional does not go with ec_consumers: an instance that embeddings are pushed to waits for them, and encodes nothing itself")},
		{"ec_consumers", h.checkConsumers},
		{"kv_bootstrap", h.checkBootstraps},
		{"max_ejected", unless(*h.MaxEjected <= 50, "max_ejected must not be more than 50 (percent), so that half of a pool remains")},
		{"max_memory", h.checkMemory},
	} {
		if err := check.find(); err != nil {
			return check.option, err
		}
	}
	return "", nil
}

func unless(holds bool, text string) func() error {
	return func() error {
		if holds {
			return nil
		}
		return errors.New(text)
	}
}

// checkNumbers returns an error for negative numbers, which only JSON can contain.
func (h *Handler) checkNumbers() (option string, err error) {
	for _, n := range []struct {
		option string
		value  int64
	}{
		{"retries", int64(*h.Retries)},
		{"retry_budget", int64(*h.RetryBudget)},
		{"max_ejected", int64(*h.MaxEjected)},
		{"encode_concurrency", int64(h.EncodeConcurrency)},
		{"encode_timeout", int64(h.EncodeTimeout)},
		{"prefill_timeout", int64(h.PrefillTimeout)},
		{"kv_lease", int64(h.KVLease)},
		{"stream_start_timeout", int64(h.StreamStartTimeout)},
		{"stream_idle_timeout", int64(h.StreamIdleTimeout)},
		{"encode_limit", int64(h.EncodeLimit)},
		{"prefill_limit", int64(h.PrefillLimit)},
		{"decode_limit", int64(h.DecodeLimit)},
		{"queue_size", int64(*h.QueueSize)},
		{"queue_timeout", int64(h.QueueTimeout)},
		{"max_memory", h.MaxMemory},
		{"body_timeout", int64(h.BodyTimeout)},
		{"stream_keepalive", int64(h.StreamKeepalive)},
		{"max_body_size", h.MaxBodySize},
		{"max_media_items", int64(h.MaxMediaItems)},
		{"encode_batch", int64(h.EncodeBatch)},
	} {
		if n.value < 0 {
			return n.option, fmt.Errorf("%s must not be negative", n.option)
		}
	}
	return "", nil
}

// checkPool returns an error if a pool is missing, as only prefill may be, or empty.
func checkPool(stage, upstreams string, pool *reverseproxy.Handler) error {
	if pool == nil && stage == "prefill" {
		return nil
	}
	missing := "there is no %s pool"
	if pool != nil {
		missing = "the %s pool has no upstreams"
		if len(pool.Upstreams) > 0 || pool.DynamicUpstreamsRaw != nil {
			return nil
		}
	}
	return fmt.Errorf(missing+`; write "%s %s" in the epd_proxy block (JSON: "%s": {"upstreams": [{"dial": "host:port"}]})`, stage, stage, upstreams, stage)
}

func (h *Handler) checkMediaSources() error {
	for _, source := range h.MediaSources {
		if _, err := media.ParseSource(source); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) checkMemory() error {
	if least := 2 * itemSize * int64(h.MaxMediaItems); h.MaxMemory < least {
		return fmt.Errorf("max_memory (%d bytes) must be %d bytes at least for max_media_items %d: an item counts as %d bytes", h.MaxMemory, least, h.MaxMediaItems, itemSize)
	}
	if h.MaxBodySize > h.MaxMemory/2 {
		return fmt.Errorf("max_memory (%d bytes) must be twice max_body_size (%d bytes) at least, so that one request cannot take all of it", h.MaxMemory, h.MaxBodySize)
	}
	return nil
}

func (h *Handler) checkConsumers() error {
	if len(h.ECConsumers) == 0 {
		return nil
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
			hostport, isTCP := strings.CutPrefix(address, "tcp://")
			if host, port, err := net.SplitHostPort(hostport); !isTCP || err != nil || host == "" || port == "" {
				return fmt.Errorf("ec_consumers has '%s' for '%s', which is no address of a consumer; write tcp://host:port", address, upstream)
			}
		}
	}
	return nil
}

// covers checks that an option has a value for each upstream of a pool, and for no other.
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

func (h *Handler) checkBootstraps() error {
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
