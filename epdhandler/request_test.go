package epdhandler

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

const (
	kiB = 1 << 10
	miB = 1 << 20
)

// nothingHeld waits until no body is in memory.
func nothingHeld(t *testing.T) {
	t.Helper()
	eventually(t, "no memory is held", func() bool { return memoryLedger.Held() == 0 })
}

// What somebody else's reader panics with is no reason to keep a body.
func TestPanicGivesMemoryBack(t *testing.T) {
	nothingHeld(t)
	for _, length := range []int64{-1, miB} {
		r := httptest.NewRequest(http.MethodPost, chatPath, nil)
		r.Header.Set("Content-Type", "application/json")
		r.Body, r.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader("{"), panics{})), length
		h := &Handler{MaxBodySize: miB, MaxMemory: 8 * miB, BodyTimeout: caddy.Duration(time.Minute)}
		x := &exchange{h: h, w: httptest.NewRecorder(), r: r, report: newReport("x", apiChat)}
		assert.Panics(t, func() { x.complete(true) })
		requestsInFlight.WithLabelValues(apiChat).Dec()
		nothingHeld(t)
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("no") }

// What is kept of a body until decode answers is counted, also of one that has next to
// nothing but media items.
func TestItemsAreCounted(t *testing.T) {
	const items = 10_000
	var parts []string
	for i := range items { // equal media are encoded once
		parts = append(parts, fmt.Sprintf(`{"image_url":"%d"}`, i))
	}
	in := `{"messages":[{"content":[` + strings.Join(parts, ",") + `]}]}`
	retries := 1
	h := &Handler{MaxBodySize: miB, MaxMemory: 64 * miB, MaxMediaItems: items, BodyTimeout: caddy.Duration(time.Minute),
		References: true, EncodeBatch: 1, Retries: &retries, encode: &pool{stage: "encode", handler: new(reverseproxy.Handler)}}
	r := httptest.NewRequest(http.MethodPost, chatPath, strings.NewReader(in))
	r.Header.Set("Content-Type", "application/json")
	r = r.WithContext(context.WithValue(t.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer()))
	nothingHeld(t)
	before := liveHeap()
	x := &exchange{h: h, w: httptest.NewRecorder(), r: r, report: new(report)}
	defer x.release()
	require.Nil(t, x.readBody(true))
	counted := memoryLedger.Held()
	x.planEncoding()
	answers := make([]media.Answer, items)
	for i := range answers {
		said := fmt.Appendf(nil, `{"ec_transfer_params":{"%064d":{"item_indices":[0],"metadata":{"image_grid_thw":[[1,44,80]]}}}}`, i)
		var err error
		answers[i], err = x.plan.Read(i, said, []string{"01234567-89ab-cdef-0123-456789abcdef"})
		require.NoError(t, err)
	}
	x.embeddings = x.plan.Encoded(answers)
	require.True(t, x.embeddings.Refers)
	out := x.embeddings.Body.Rewrite(body.Set(body.ECTransferParams, x.embeddings.Handles))
	took := liveHeap() - before
	t.Logf("%d bytes for each item", took/items)
	assert.Less(t, took, counted)
	x.release()
	nothingHeld(t)
	runtime.KeepAlive(x)
	runtime.KeepAlive(answers)
	runtime.KeepAlive(out)
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // what pools had kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
