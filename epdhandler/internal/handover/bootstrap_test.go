package handover

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bootstrapServer starts a server that answers GET /query, and nothing else.
func bootstrapServer(t *testing.T, answer http.HandlerFunc) *Bootstrap {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /query", answer)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return &Bootstrap{Address: s.URL}
}

func TestBootstrapAnswers(t *testing.T) {
	t.Parallel()
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, text) }
	}
	for name, tc := range map[string]struct {
		answer   http.HandlerFunc
		id, want string
	}{
		"vLLM's":        {say(`{"0":{"engine_id":"a-b","worker_addr":{"0":{"0":"tcp://10.0.0.2:39157"}}}}`), "a-b", ""},
		"rank 3 of 4":   {say(`{"3":{"engine_id":"a","worker_addr":{}}}`), "a", ""},
		"quotes":        {say(`{"0":{"engine_id":"a\"b"}}`), `a"b`, ""},
		"nobody yet":    {say(`{}`), "", "no engine has registered with it"},
		"no id":         {say(`{"0":{}}`), "", "no engine has registered with it"},
		"several ranks": {say(`{"0":{"engine_id":"a"},"1":{"engine_id":"b"}}`), "", "it knows 2 data-parallel ranks"},
		"a list":        {say(`["a"]`), "", "its answer is none of a bootstrap server"},
		"a number":      {say(`{"0":{"engine_id":7}}`), "", "its answer is none of a bootstrap server"},
		"no JSON":       {say(`<html>`), "", "its answer is none of a bootstrap server"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := fmt.Fprint(w, strings.Repeat(" ", 1<<20)); err != nil {
					return
				}
			}
		}, "", "its answer is none of a bootstrap server"},
		"an error":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "", "status 500"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "", "status 302"},
		"silent":     {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "", "context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			id, err := bootstrapServer(t, tc.answer).engineID(t.Context(), start)
			assert.Equal(t, tc.id, id)
			assert.Less(t, time.Since(start), 3*bootstrapTimeout)
			if tc.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.want)
			}
		})
	}
}

// An answer is for all who were sent something before the server was asked, and for nobody else.
// The others get it although one leaves. A failure is only for those who waited for it.
func TestBootstrapIsAskedOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	answers := make(chan string)
	b := bootstrapServer(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = fmt.Fprint(w, <-answers)
	})
	begin := time.Now()
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := b.engineID(ctx, begin)
		gone <- err
	}()
	require.Eventually(t, func() bool { return asked.Load() == 1 }, 10*time.Second, time.Millisecond)
	leave()
	require.ErrorIs(t, <-gone, context.Canceled)

	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			id, err := b.engineID(t.Context(), begin)
			assert.NoError(t, err)
			assert.Equal(t, "first", id)
		})
	}
	answers <- `{"0":{"engine_id":"first"}}`
	all.Wait()
	assert.EqualValues(t, 1, asked.Load())

	go func() { answers <- `{}`; answers <- `{"0":{"engine_id":"second"}}` }()
	later := time.Now()
	_, err := b.engineID(t.Context(), later)
	require.Error(t, err)
	for range 2 {
		id, err := b.engineID(t.Context(), later)
		require.NoError(t, err)
		assert.Equal(t, "second", id)
	}
	assert.EqualValues(t, 3, asked.Load())
}
