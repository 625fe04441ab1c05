package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// poolStatus is a pool in the status.
type poolStatus struct {
	Stage, Health string
	InFlight      int `json:"in_flight"`
	Limit         int
	Waiting       int
	QueueSize     int `json:"queue_size"`
	Upstreams     []struct {
		Name, Address string
		Healthy       *bool
		Ejected       bool
		InFlight      int `json:"in_flight"`
		Answers       int
		FirstByte     struct{ P50, P95 float64 }  `json:"time_to_first_byte"`
		Failures      int                         `json:"recent_failures"`
		HandOvers     *struct{ Blocks, None int } `json:"handoffs"`
		LastFailure   *struct {
			At     time.Time
			Reason string
		} `json:"last_failure"`
	}
}

type status struct {
	Handlers []struct {
		Pools []poolStatus
	}
	Memory struct{ Held, Limit int64 }
}

func (c *caddy) status(t *testing.T) (s status) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(c.admin(t, "/epd/status")), &s))
	return s
}

// The status page has the state of every pool and instance.
func TestStatus(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 1)
	c := startCaddy(t, e.block("decode_limit 1", "queue_size 5", "encode health_interval 50ms", "encode health_fails 1"))
	body := chat("", image("AAAA"), image("BBBB"))
	setFault(fault{Kind: fakevllm.Status, Code: 500, Message: "broken", Times: 1}, e.encode[0])
	assertAnswer(t, body, c.post(t, body))

	s := c.status(t)
	require.Len(t, s.Handlers, 1)
	assert.Positive(t, s.Memory.Limit)
	pools := s.Handlers[0].Pools
	require.Len(t, pools, 3)
	for i, list := range [][]*fakevllm.Engine{e.encode, e.prefill, e.decode} {
		p := pools[i]
		assert.Equal(t, "healthy", p.Health)
		require.Len(t, p.Upstreams, len(list), p.Stage)
		for n, u := range p.Upstreams {
			assert.Equal(t, list[n].Addr(), u.Address)
			assert.True(t, u.Healthy != nil && *u.Healthy, u.Name)
			assert.Positive(t, u.Answers, u.Name)
			assert.Positive(t, u.FirstByte.P50, u.Name)
			assert.LessOrEqual(t, u.FirstByte.P50, u.FirstByte.P95, u.Name)
		}
	}
	assert.Equal(t, []string{"encode", "prefill", "decode"}, []string{pools[0].Stage, pools[1].Stage, pools[2].Stage})
	assert.Equal(t, 1, pools[2].Limit)
	assert.Equal(t, 5, pools[2].QueueSize)
	sick := pools[0].Upstreams[0]
	assert.Equal(t, "encode#1", sick.Name)
	assert.Equal(t, 1, sick.Failures)
	require.NotNil(t, sick.LastFailure)
	assert.Equal(t, "bad_status", sick.LastFailure.Reason)
	assert.WithinDuration(t, time.Now(), sick.LastFailure.At, time.Minute)
	assert.Nil(t, pools[0].Upstreams[1].LastFailure)

	// also shows requests that began before a reload
	release := c.occupy(t, stream(chat("", text("HELD"))), "HELD", e.decode...)
	e.encode[1].Kill()
	eventually(t, func() bool {
		p := c.status(t).Handlers[0].Pools
		return p[2].InFlight == 1 && p[2].Upstreams[0].InFlight == 1 && p[0].Health == "degraded" && !*p[0].Upstreams[1].Healthy
	})
	c.reload(t, e.block())
	s = c.status(t)
	require.Len(t, s.Handlers, 1)
	assert.Equal(t, 1, s.Handlers[0].Pools[2].InFlight)
	assert.Zero(t, s.Handlers[0].Pools[2].Limit)
	release()
	eventually(t, func() bool { return c.status(t).Handlers[0].Pools[2].InFlight == 0 })

	assert.Equal(t, http.StatusNotFound, c.do(t, http.MethodGet, "/epd/status", "").StatusCode, "the status is on the public site")
}

func eventually(t *testing.T, what func() bool) {
	t.Helper()
	require.Eventually(t, what, waitLong, 20*time.Millisecond)
}

// The HTML page shows the same in a browser.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium in the PATH")
	}
	e := startEngines(t, 2, 1, 1)
	c := startCaddy(t, e.block("encode_limit 3"))
	setFault(fault{Kind: fakevllm.Status, Code: 500, Message: "broken", Times: 1}, e.encode[0])
	c.post(t, chat("", image("AAAA"), image("BBBB")))

	// as documented: Caddy's admin endpoint rejects browsers without an allowed origin
	admin := fmt.Sprintf("localhost:%d", freePort(t))
	c.reloadWith(t, "admin "+admin+" {\n origins "+admin+" \"\"\n}", e.block("encode_limit 3"))
	show := func() string {
		page, err := exec.Command(browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
			"--virtual-time-budget=3000", "--dump-dom", "http://"+admin+"/epd/status").Output()
		require.NoError(t, err)
		_, main, _ := strings.Cut(string(page), "<main")
		main, _, _ = strings.Cut(main, "</main>")
		return main
	}
	page := show()
	for _, engine := range e.all() {
		assert.Contains(t, page, engine.Addr())
	}
	for _, words := range []string{"encode", "prefill", "decode", "healthy", "● up", "of 3 in flight", "first byte", "1 failures in 5 min", "last: bad status", "→"} {
		assert.Contains(t, page, words)
	}
	assert.NotContains(t, page, "NaN")
	assert.NotContains(t, page, "undefined")

	r, err := http.NewRequest(http.MethodGet, "http://"+admin+"/epd/status", http.NoBody)
	require.NoError(t, err)
	r.Header.Set("Origin", "http://evil.example")
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	assert.Equal(t, http.StatusForbidden, res.StatusCode, "a page of another site can read it")
}
