package epdhandler

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

const (
	kiB = 1 << 10
	miB = 1 << 20
)

// nothingHeld waits until no body is in memory.
func nothingHeld(t *testing.T) {
	t.Helper()
	eventually(t, "no memory is held", func() bool { return testProcess.Memory.Held() == 0 })
}

// A body is released even if the reader that another module has put around it panics.
func TestPanicGivesMemoryBack(t *testing.T) {
	nothingHeld(t)
	for _, length := range []int64{-1, miB} {
		r := httptest.NewRequest(http.MethodPost, chatPath, nil)
		r.Header.Set("Content-Type", "application/json")
		r.Body, r.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader("{"), panics{})), length
		h := &Handler{MaxBodySize: miB, MaxMemory: 8 * miB, BodyTimeout: caddy.Duration(time.Minute), process: testProcess}
		x := &exchange{h: h, w: httptest.NewRecorder(), r: r, report: newReport(process.New().Metrics, "x", telemetry.Chat)}
		assert.Panics(t, func() { x.generate((*Handler).parseChat) })
		nothingHeld(t)
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("no") }

// The memory that a request keeps until decode answers is counted, also if its body consists
// almost only of media items.
func TestItemsAreCounted(t *testing.T) {
	const items = 10_000
	var parts []string
	for i := range items { // all equal, so each is encoded once
		parts = append(parts, fmt.Sprintf(`{"image_url":"%d"}`, i))
	}
	in := `{"messages":[{"content":[` + strings.Join(parts, ",") + `]}]}`
	h, err := load(t, fmt.Sprintf(`{"references":true,"max_media_items":%d,"encode":{"upstreams":[{"dial":"a:1"}],"health_checks":{"active":{}}},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}}`, items))
	require.NoError(t, err)
	r := httptest.NewRequest(http.MethodPost, chatPath, strings.NewReader(in))
	r.Header.Set("Content-Type", "application/json")
	g := newGeneration(h, r, nil)
	nothingHeld(t)
	before := liveHeap()
	var e *apiError
	g.in, e = g.readInput((*Handler).parseChat)
	require.Nil(t, e)
	defer g.in.release()
	counted := testProcess.Memory.Held()
	g.encoding = g.planEncoding()
	answers := make([]media.Answer, items)
	for i := range answers {
		said := fmt.Appendf(nil, `{"ec_transfer_params":{"%064d":{"item_indices":[0],"metadata":{"image_grid_thw":[[1,44,80]]}}}}`, i)
		answers[i], err = g.encoding.plan.Read(i, said, []string{"01234567-89ab-cdef-0123-456789abcdef"})
		require.NoError(t, err)
	}
	encoded := g.encoding.plan.Encoded(answers)
	require.True(t, encoded.Refers)
	out := encoded.Body.Rewrite(body.Set(body.ECTransferParams, encoded.Handles))
	took := liveHeap() - before
	t.Logf("%d bytes for each item", took/items)
	assert.Less(t, took, counted)
	g.in.release()
	nothingHeld(t)
	runtime.KeepAlive(g)
	runtime.KeepAlive(encoded)
	runtime.KeepAlive(answers)
	runtime.KeepAlive(out)
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // frees what sync.Pools have kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
