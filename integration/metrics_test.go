package integration

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// metrics are the values of Caddy's metrics page, by name and labels.
type metrics map[string]float64

func (c *caddy) metrics(t *testing.T) metrics {
	t.Helper()
	m := make(metrics)
	for line := range strings.Lines(c.admin(t, "/metrics")) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := cutLast(strings.TrimSpace(line), " ")
		require.True(t, ok, line)
		v, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err, line)
		m[name] = v
	}
	return m
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// has asserts the values of epd_proxy's metrics, given without their common prefix.
func (m metrics) has(t *testing.T, want map[string]float64) {
	t.Helper()
	for name, value := range want {
		got, ok := m["caddy_epd_"+name]
		if assert.True(t, ok, "no metric %s", name) {
			assert.Equal(t, value, got, name)
		}
	}
}

// Counters count what has happened, and keep their values over reloads.
func TestMetrics(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 2)
	c := startCaddy(t, e.block())
	picture, sound := image("AAAA"), `{"type":"input_audio","input_audio":{"data":"BBBB","format":"wav"}}`
	send := func(body string) {
		t.Helper()
		assertAnswer(t, body, c.post(t, body))
	}
	send(stream(chat("", picture, sound, text("x"))))
	send(chat("", text("x")))
	c.do(t, http.MethodPost, "/v1/completions", `{"model":"fake","prompt":"x"}`)
	c.do(t, http.MethodGet, "/v1/models", "")
	c.do(t, http.MethodGet, "/"+strings.Repeat("x", 10), "")
	c.post(t, "no json")
	for _, engine := range e.encode {
		engine.SetFault(fault{Kind: fakevllm.Status, Code: 500, Message: "broken", Times: 1})
	}
	c.post(t, chat("", image("CCCC"))) // fails at both encoders
	setFault(fault{Kind: fakevllm.Status, Code: 400, Message: "too small"}, e.decode...)
	c.post(t, chat("", text("y")))

	want := map[string]float64{
		`requests_total{api="chat_completions",outcome="ok"}`:                          2,
		`requests_total{api="chat_completions",outcome="rejected"}`:                    2,
		`requests_total{api="chat_completions",outcome="failed"}`:                      1,
		`requests_total{api="completions",outcome="ok"}`:                               1,
		`requests_total{api="models",outcome="ok"}`:                                    1,
		`requests_total{api="other",outcome="rejected"}`:                               1,
		`requests_in_flight{api="chat_completions"}`:                                   0,
		`request_duration_seconds_count{api="chat_completions"}`:                       4,
		`time_to_first_token_seconds_count{api="chat_completions"}`:                    1,
		`stream_duration_seconds_count{api="chat_completions"}`:                        1,
		`stage_duration_seconds_count{stage="encode"}`:                                 2,
		`stage_duration_seconds_count{stage="prefill"}`:                                4,
		`stage_duration_seconds_count{stage="decode"}`:                                 4,
		`stage_failures_total{reason="bad_status",stage="encode"}`:                     2,
		`stage_failures_total{reason="rejected",stage="decode"}`:                       1,
		`stage_failures_total{reason="bad_status",stage="decode"}`:                     0,
		`stage_retries_total{stage="encode"}`:                                          1,
		`stage_retries_total{stage="prefill"}`:                                         0,
		`stage_requests_in_flight{stage="decode"}`:                                     0,
		`stage_requests_waiting{stage="decode"}`:                                       0,
		`media_items_total{kind="image"}`:                                              2,
		`media_items_total{kind="audio"}`:                                              1,
		`media_items_total{kind="video"}`:                                              0,
		`media_bytes_total{kind="image"}`:                                              float64(2 * len(picture)),
		`media_bytes_total{kind="audio"}`:                                              float64(len(sound)),
		`request_media_items_bucket{le="0"}`:                                           2,
		`request_media_items_count`:                                                    4,
		`body_bytes_held`:                                                              0,
		upstream("upstream_failures_total", "encode", e.encode[0]):                     1,
		upstream("upstream_failures_total", "encode", e.encode[1]):                     1,
		upstream("upstream_healthy", "prefill", e.prefill[0]):                          1,
		upstream("upstream_requests_in_flight", "decode", e.decode[0]):                 0,
		upstream("upstream_time_to_first_byte_seconds_count", "prefill", e.prefill[0]): 4,
		upstream("upstream_time_to_first_byte_seconds_count", "encode", e.encode[0]):   2,
	}
	m := c.metrics(t)
	m.has(t, want)
	assert.Positive(t, m["caddy_epd_body_bytes_limit"])
	assert.Less(t, m[`caddy_epd_stream_duration_seconds_sum{api="chat_completions"}`], m[`caddy_epd_request_duration_seconds_sum{api="chat_completions"}`])
	assert.NotContains(t, c.admin(t, "/metrics"), "xxx", "the client has chosen a label")
	assert.Greater(t, m["go_memstats_next_gc_bytes"], float64(16<<20), "the garbage collector runs too often")

	c.reload(t, e.block())
	c.metrics(t).has(t, want)
	assert.Contains(t, c.metrics(t), "caddy_reverse_proxy_upstreams_healthy{upstream=\""+e.decode[0].Addr()+"\"}", "Caddy's own are there too")
}

func upstream(name, stage string, engine *fakevllm.Engine) string {
	return fmt.Sprintf(`%s{stage="%s",upstream="%s"}`, name, stage, engine.Addr())
}

// Gauges show the current state.
func TestMetricsOfTheMoment(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block("decode_limit 1", "queue_size 7", "encode health_interval 50ms", "encode health_fails 1"))
	release := c.occupy(t, stream(chat("", text("HELD"))), "HELD", e.decode...)
	done := make(chan *reply)
	go func() { done <- c.post(t, chat("", text("waits"))) }()
	holds := func(want map[string]float64) {
		t.Helper()
		require.Eventually(t, func() bool {
			m := c.metrics(t)
			for name, value := range want {
				if got, ok := m["caddy_epd_"+name]; !ok || got != value {
					return false
				}
			}
			return true
		}, waitLong, 20*time.Millisecond, "%v", want)
	}
	holds(map[string]float64{
		`requests_in_flight{api="chat_completions"}`:                   2,
		`stage_requests_in_flight{stage="decode"}`:                     1,
		`stage_requests_waiting{stage="decode"}`:                       1,
		`stage_wait_seconds_count{stage="decode"}`:                     0,
		`queue_size{stage="decode"}`:                                   7,
		upstream("upstream_requests_in_flight", "decode", e.decode[0]): 1,
		upstream("upstream_healthy", "encode", e.encode[0]):            1,
	})
	assert.NotContains(t, c.metrics(t), `caddy_epd_queue_size{stage="encode"}`, "there is a queue without a limit")
	release()
	require.Equal(t, http.StatusOK, (<-done).StatusCode)
	e.encode[0].Close()
	holds(map[string]float64{
		`requests_in_flight{api="chat_completions"}`:                     0,
		`requests_total{api="chat_completions",outcome="client_closed"}`: 1,
		`stage_requests_in_flight{stage="decode"}`:                       0,
		`stage_requests_waiting{stage="decode"}`:                         0,
		`stage_wait_seconds_count{stage="decode"}`:                       1,
		`body_bytes_held`: 0,
		upstream("upstream_requests_in_flight", "decode", e.decode[0]): 0,
		upstream("upstream_healthy", "encode", e.encode[0]):            0,
	})
}
