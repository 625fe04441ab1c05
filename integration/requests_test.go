package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// everyRequest calls a function with each kind of request of the suite against real engines, and
// the outcome of vLLM 0.32.0 (go run ./integration/vllm). Fake engines do not read media, so
// requests whose outcome depends on their bytes are left out.
func everyRequest(t *testing.T, f func(r requests.Request, outcome string)) {
	t.Helper()
	data, err := os.ReadFile("vllm/testdata/outcomes-0.32.0.json")
	require.NoError(t, err)
	var outcomes map[string]string
	require.NoError(t, json.Unmarshal(data, &outcomes))
	for _, list := range [][]requests.Request{requests.Texts(), requests.Images(""), requests.Videos(""), requests.Refused("")} {
		for _, r := range requests.Both(list) {
			require.Contains(t, outcomes, r.Name)
			if !r.ReadsMedia {
				f(r, outcomes[r.Name])
			}
		}
	}
}

// asRecorded configures engines like those of the recorded outcomes.
func asRecorded(o *fakevllm.Options) {
	o.Model, o.ECExample, o.MaxImages, o.MaxModelLen = "tiny", true, 16, 8192
}

// ending is the outcome of an answer, in the words of the suite.
func ending(r *reply) string {
	end := fmt.Sprint(r.StatusCode)
	if r.StatusCode == http.StatusOK && bytes.Contains(r.body, []byte(`data: {"error"`)) {
		end += ", error event"
	}
	return end
}

// Fake engines accept and reject the same requests as vLLM.
func TestFakeEnginesAnswerAsVLLM(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 0, 0, 1, asRecorded)
	everyRequest(t, func(r requests.Request, want string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+e.decode[0].Addr()+r.Path, bytes.NewReader(r.Body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Request-Id", r.Name)
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		got := &reply{Response: res}
		got.body, got.err = io.ReadAll(res.Body)
		require.NoError(t, got.err)
		assert.Equal(t, want, ending(got), "%s: %s", r.Name, got.body)
	})
}

// Each kind of request has the same outcome through the proxy as at a single engine, except for
// streams that the single engine begins before it finds the error.
func TestEveryRequestInEveryTopology(t *testing.T) {
	t.Parallel()
	for name, prefill := range map[string]int{"E+PD": 0, "E+P+D": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, prefill, 1, asRecorded, func(o *fakevllm.Options) { o.ComputesPrompts = true })
			c := startCaddy(t, e.block())
			everyRequest(t, func(r requests.Request, want string) {
				want = strings.Replace(want, "200, error event", "400", 1)
				got := c.do(t, http.MethodPost, r.Path, string(r.Body))
				assert.Equal(t, want, ending(got), "%s: %s", r.Name, got.body)
			})
		})
	}
}
