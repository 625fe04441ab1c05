package epdhandler

import (
	"bytes"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

// FuzzStages compares the bodies that the stages send with bodies made from maps, for any
// client's body and any answers of encoders and prefill.
func FuzzStages(f *testing.F) {
	const message = `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"},"uuid":"u"}]}]`
	f.Add([]byte(`{`+message+`,"model":"m","stream":true,"stream_options":{},"max_tokens":9,"ec_transfer_params":{}}`), []byte(`{"ec_transfer_params":{"h":{"a":1}}}`), []byte(`{"kv_transfer_params":{"remote_host":"h"}}`), false)
	f.Add([]byte(`{"max_completion_tokens":9,"min_tokens":"2","tool_choice":"required",`+message+`,"priority":1}`), []byte(`{}`), []byte(`{"kv_transfer_params":null}`), true)
	f.Add([]byte(`{`+message+`,"kv_transfer_params":{"x":1},"mm_processor_kwargs":{},"media_io_kwargs":{},"session_id":"s"}`), []byte(`[]`), []byte(`{"kv_transfer_params":7}`), true)
	f.Fuzz(func(t *testing.T, in, encoded, prefilled []byte, trusted bool) {
		b, set, err := media.ParseChat(in, 10, trusted)
		if err != nil {
			return
		}
		g := &generation{exchange: &exchange{h: &Handler{TrustClients: trusted}}, in: &input{body: b, media: set}}
		g.h.site.Prefill = new(engine.Pool)
		client := decoded(t, b.Rewrite().Bytes())

		plan := set.Plan(media.Options{BatchSize: 1})
		answer, err := plan.Read(0, encoded, nil)
		handles, fit := params(encoded, "ec_transfer_params")
		require.Equal(t, fit, err == nil, "%q: %v", encoded, err)
		e := &embeddings{Encoded: plan.Encoded([]media.Answer{answer})}
		if own, ok := client["ec_transfer_params"].(map[string]any); ok && trusted {
			own = maps.Clone(own)
			maps.Copy(own, handles)
			handles = own
		}
		if e.Handles != nil {
			require.Equal(t, handles, decoded(t, e.Handles))
		} else {
			require.Empty(t, handles)
		}

		for i, item := range set.Items() { // TestAppendAlone tests the part
			require.Equal(t, []int{i}, plan.Batches[i])
			request, _ := plan.Request(i, "")
			got := decoded(t, request.Bytes())
			parts := got["messages"].([]any)[0].(map[string]any)["content"].([]any)
			require.Len(t, parts, 1)
			want := map[string]any{"max_tokens": 1.0, "stream": false, "messages": []any{map[string]any{"role": "user", "content": parts}}}
			for _, name := range []string{"model", "mm_processor_kwargs", "media_io_kwargs", "chat_template", "chat_template_kwargs", "priority", "session_id"} {
				if v, ok := client[name]; ok {
					want[name] = v
				}
			}
			require.Equal(t, want, got)
			if uuid, ok := parts[0].(map[string]any)["uuid"]; ok {
				require.Equal(t, item.UUID, uuid)
			}
		}

		want := maps.Clone(client)
		want["stream"], want["max_tokens"], want["kv_transfer_params"] = false, 1.0, decoded(t, handover.Probe("", ""))["kv_transfer_params"]
		delete(want, "stream_options")
		if _, ok := want["max_completion_tokens"]; ok {
			want["max_completion_tokens"] = 1.0
		}
		request, read := handover.NIXL{}.Request(b, g.carry(body.ECTransferParams, e.Handles))
		got := decoded(t, request.Bytes())
		for _, name := range []string{"min_tokens", "tool_choice"} { // TestCaptures tests when they are changed
			if _, ok := got[name]; !ok || got[name] == "none" {
				delete(want, name)
				delete(got, name)
			}
		}
		setParams(want, "ec_transfer_params", e.Handles, trusted)
		require.Equal(t, want, got)

		handed, err := read(t.Context(), prefilled, "", time.Now())
		kvBlocks := &blocks{handed}
		kv, fit := params(prefilled, "kv_transfer_params")
		require.Equal(t, fit, err == nil, "%q: %v", prefilled, err)
		if err == nil && len(kv) > 0 {
			require.Equal(t, kv, decoded(t, handed.Params))
		}
		for _, g.h.site.Prefill = range []*engine.Pool{nil, new(engine.Pool)} {
			want = maps.Clone(client)
			setParams(want, "kv_transfer_params", handed.Params, trusted)
			delete(want, "ec_transfer_params")
			if g.h.site.Prefill == nil {
				want = maps.Clone(client)
				setParams(want, "kv_transfer_params", handed.Params, trusted)
				setParams(want, "ec_transfer_params", e.Handles, trusted)
			}
			require.Equal(t, want, decoded(t, g.decodeBody(e, kvBlocks).Bytes()))
		}
	})
}

// decoded is a body as encoding/json decodes it.
func decoded(t *testing.T, in []byte) (m map[string]any) {
	require.NoError(t, json.Unmarshal(in, &m), "%s", in)
	return m
}

// params are the transfer parameters in an engine's answer; nil if it is not an answer or
// they are not an object.
func params(answer []byte, name string) (m map[string]any, fit bool) {
	if b, err := body.Parse(answer); err != nil || b == nil {
		return nil, false
	}
	var top map[string]json.RawMessage
	if json.Unmarshal(bytes.TrimPrefix(answer, []byte("\ufeff")), &top) != nil {
		return nil, false
	}
	if v := top[name]; body.Given(v) && !body.IsObject(v) {
		return nil, false
	}
	_ = json.Unmarshal(top[name], &m)
	return m, true
}

// setParams sets the parameters from engines; a client's own are kept only for trusted clients.
func setParams(m map[string]any, name string, given []byte, trusted bool) {
	switch {
	case given != nil:
		var v any
		_ = json.Unmarshal(given, &v)
		m[name] = v
	case !trusted:
		delete(m, name)
	}
}
