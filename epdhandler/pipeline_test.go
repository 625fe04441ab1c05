package epdhandler

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// What a failed attempt has spent is made again, and nothing else: the table of restore, row by row.
func TestRestore(t *testing.T) {
	t.Parallel()
	const (
		again  = "again"  // made again
		kept   = "kept"   // unchanged
		media  = "media"  // media instead of references
		absent = "absent" // was not made
	)
	var (
		nothing  = made{}
		free     = func() made { return ofEncode(telemetry.Prefill, false, false, false) }
		handles  = func() made { return ofEncode(telemetry.Prefill, true, false, false) }
		pushed   = func() made { return ofEncode(telemetry.Prefill, true, true, false) }
		refs     = func() made { return ofEncode(telemetry.Prefill, false, false, true) }
		refsOnce = func() made { return ofEncode(telemetry.Prefill, true, false, true) }
		atDecode = func(m made) made { m.embeddings.stage = telemetry.Decode; m.blocks = new(blocks); return m }
	)
	for name, tc := range map[string]struct {
		made               made
		failed             *failure
		embeddings, blocks string
	}{
		"encode":                                  {nothing, fails(telemetry.Encode, telemetry.Broken), absent, absent},
		"prefill, not reached":                    {handles(), fails(telemetry.Prefill, telemetry.Refused), kept, absent},
		"prefill, not reached, pushed":            {pushed(), fails(telemetry.Prefill, telemetry.Refused), again, absent},
		"prefill, nobody, pushed":                 {pushed(), fails(telemetry.Prefill, telemetry.Unavailable), again, absent},
		"prefill, moves, pushed":                  {pushed(), stale(fails(telemetry.Prefill, telemetry.Expired)), again, absent},
		"prefill, reached, files":                 {free(), fails(telemetry.Prefill, telemetry.Broken), kept, absent},
		"prefill, reached, handles":               {handles(), fails(telemetry.Prefill, telemetry.Broken), again, absent},
		"prefill, timeout, handles":               {handles(), fails(telemetry.Prefill, telemetry.TimedOut), again, absent},
		"prefill, lost, handles":                  {handles(), lost(fails(telemetry.Prefill, telemetry.Expired)), again, absent},
		"prefill, reached, pushed":                {pushed(), fails(telemetry.Prefill, telemetry.Broken), again, absent},
		"prefill, 500, references":                {refs(), status500(fails(telemetry.Prefill, telemetry.BadStatus)), media, absent},
		"prefill, broken, references":             {refs(), fails(telemetry.Prefill, telemetry.Broken), media, absent},
		"prefill, lost, references":               {refs(), lost(fails(telemetry.Prefill, telemetry.Expired)), media, absent},
		"prefill, 503, references":                {refs(), status(fails(telemetry.Prefill, telemetry.BadStatus), 503), kept, absent},
		"prefill, refused, references":            {refs(), fails(telemetry.Prefill, telemetry.Refused), kept, absent},
		"prefill, broken, references and handles": {refsOnce(), fails(telemetry.Prefill, telemetry.Broken), again, absent},

		"decode, not reached":                   {prefilled(handles(), true), fails(telemetry.Decode, telemetry.Refused), kept, kept},
		"decode, busy, pushed":                  {prefilled(pushed(), true), fails(telemetry.Decode, telemetry.Overloaded), kept, kept},
		"decode, reached, files":                {prefilled(free(), true), fails(telemetry.Decode, telemetry.Broken), kept, again},
		"decode, reached, handles":              {prefilled(handles(), true), fails(telemetry.Decode, telemetry.Broken), again, again},
		"decode, reached, pushed":               {prefilled(pushed(), true), fails(telemetry.Decode, telemetry.Broken), again, again},
		"decode, lost":                          {prefilled(free(), true), lost(fails(telemetry.Decode, telemetry.Expired)), kept, again},
		"decode, stale":                         {prefilled(free(), true), stale(fails(telemetry.Decode, telemetry.Expired)), kept, again},
		"decode, stale, handles":                {prefilled(handles(), true), stale(fails(telemetry.Decode, telemetry.Expired)), again, again},
		"decode, reached, nothing handed over":  {prefilled(handles(), false), fails(telemetry.Decode, telemetry.Broken), kept, kept},
		"decode, reached, references":           {prefilled(refs(), true), fails(telemetry.Decode, telemetry.Broken), kept, again},
		"decode, 500, references of its own":    {prefilled(refs(), true), status500(fails(telemetry.Decode, telemetry.BadStatus)), media, again},
		"decode alone, not reached":             {atDecode(handles()), fails(telemetry.Decode, telemetry.Refused), kept, kept},
		"decode alone, not reached, pushed":     {atDecode(pushed()), fails(telemetry.Decode, telemetry.Refused), again, again},
		"decode alone, moves, pushed":           {atDecode(pushed()), stale(fails(telemetry.Decode, telemetry.Expired)), again, again},
		"decode alone, reached, files":          {atDecode(free()), fails(telemetry.Decode, telemetry.Broken), kept, kept},
		"decode alone, reached, handles":        {atDecode(handles()), fails(telemetry.Decode, telemetry.Broken), again, again},
		"decode alone, reached, pushed":         {atDecode(pushed()), fails(telemetry.Decode, telemetry.Broken), again, again},
		"decode alone, broken, references":      {atDecode(refs()), fails(telemetry.Decode, telemetry.Broken), media, kept},
		"decode alone, 500, references":         {atDecode(refs()), status500(fails(telemetry.Decode, telemetry.BadStatus)), media, kept},
		"decode alone, 400, references":         {atDecode(refs()), status(fails(telemetry.Decode, telemetry.BadStatus), 400), kept, kept},
		"decode alone, no media, reached":       {atDecode(made{embeddings: new(embeddings)}), fails(telemetry.Decode, telemetry.Broken), kept, kept},
		"gate refuses, pushed, before prefill":  {pushed(), fails(telemetry.Decode, telemetry.Overloaded), again, absent},
		"gate refuses, handles, before prefill": {handles(), fails(telemetry.Decode, telemetry.Overloaded), kept, absent},
	} {
		t.Run(name, func(t *testing.T) {
			m := tc.made
			tc.failed.brought.references = m.embeddings != nil && m.embeddings.Refers && (tc.failed.Stage == m.embeddings.stage || tc.embeddings == media)
			tc.failed.brought.once = m.blocks != nil && m.blocks.Params != nil
			g := &generation{exchange: new(exchange), prefilling: &attempts{pool: &engine.Pool{Dispatcher: process.New().Instances.New(dispatch.Settings{}, nil)}}}
			g.restore(&m, tc.failed)
			got := kept
			switch {
			case m.embeddings == nil && tc.made.embeddings == nil:
				got = absent
			case m.embeddings == nil:
				got = again
			case g.seen.noReferences:
				got = media
				assert.False(t, m.embeddings.Refers)
			}
			assert.Equal(t, tc.embeddings, got, "embeddings")
			got = kept
			switch {
			case m.blocks == nil && tc.made.blocks == nil:
				got = absent
			case m.blocks == nil:
				got = again
			}
			assert.Equal(t, tc.blocks, got, "blocks")
		})
	}
}

// ofEncode is a result of encode: embeddings that can be fetched by handles, have been pushed,
// or can be referred to.
func ofEncode(stage string, handles, pushed, refers bool) made {
	const in = `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`
	_, set, err := media.ParseChat([]byte(in), 1, false)
	if err != nil {
		panic(err)
	}
	plan := set.Plan(media.Options{References: refers, BatchSize: 1})
	answer, err := plan.Read(0, []byte(`{"ec_transfer_params":{"h":{"metadata":{"image_grid_thw":[1,2,3]}}}}`), nil)
	if err != nil {
		panic(err)
	}
	e := &embeddings{Encoded: plan.Encoded([]media.Answer{answer}), stage: stage}
	if !handles {
		e.Handles = nil
	}
	if pushed {
		e.pushedTo = new(engine.Reservation)
	}
	return made{embeddings: e}
}

// prefilled is the same after a prefill, with or without handed-over blocks.
func prefilled(m made, handedOver bool) made {
	m.blocks, m.embeddings.consumed = new(blocks), true
	if handedOver {
		m.blocks.Blocks = handover.Blocks{Params: []byte("{}")}
	}
	return m
}

func fails(stage string, why telemetry.Reason) *failure {
	reached := why == telemetry.Broken || why == telemetry.TimedOut || why == telemetry.BadStatus
	return &failure{Attempt: &engine.Attempt{Stage: stage, Reason: why, Reached: reached}}
}

func status(f *failure, code int) *failure { f.Status = code; return f }

func status500(f *failure) *failure { return status(f, http.StatusInternalServerError) }

func lost(f *failure) *failure { f.Lost, f.Reached = true, true; return f }

func stale(f *failure) *failure { f.Stale = assert.AnError; return f }

// Bodies for the stages contain the parameters from engines, and none of a client that is not trusted.
func TestCarry(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trusted bool
		given   string
		want    string
	}{
		"nothing":                     {false, "", `{"a":1}`},
		"an engine's":                 {false, `{"b":2}`, `{"a":1,"kv_transfer_params":{"b":2}}`},
		"a trusted client's":          {true, "", `{"a":1,"kv_transfer_params":{"host":"evil"}}`},
		"an engine's before a client": {true, `{"b":2}`, `{"a":1,"kv_transfer_params":{"b":2}}`},
	} {
		b, err := body.Parse([]byte(`{"a":1,"kv_transfer_params":{"host":"evil"}}`))
		assert.NoError(t, err)
		g := &generation{exchange: &exchange{h: &Handler{TrustClients: tc.trusted}}, in: &input{body: b}}
		var given []byte
		if tc.given != "" {
			given = []byte(tc.given)
		}
		assert.JSONEq(t, tc.want, string(b.Rewrite(g.carry(body.KVTransferParams, given)).Bytes()), name)
	}
}
