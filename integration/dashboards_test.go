package integration

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// dashboard is the part of examples/grafana/epd_proxy.json that Grafana needs.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Templating    struct{ List []struct{ Name string } }
	Panels        []dashboardPanel
}

type dashboardPanel struct {
	ID                       int
	Type, Title, Description string
	Datasource               struct{ Type, UID string }
	GridPos                  struct{ X, Y, W, H int }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct{ RefID, Expr, LegendFormat string }
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	file, err := os.ReadFile("../examples/grafana/epd_proxy.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(file, &d))
	return d
}

// variables are the values that Grafana inserts.
var variables = strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m")

// Grafana 10 and later can show the dashboard, and every panel has a description.
func TestDashboardIsWhole(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	assert.NotEmpty(t, d.UID)
	assert.NotEmpty(t, d.Title)
	assert.GreaterOrEqual(t, d.SchemaVersion, 38)
	assert.Len(t, d.Templating.List, 2)
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		assert.NotEmpty(t, p.Title)
		assert.False(t, ids[p.ID], "two panels have the id %d", p.ID)
		ids[p.ID] = true
		assert.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				assert.Empty(t, cells[cell], "lies over %s", p.Title)
				cells[cell] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		assert.NotEmpty(t, p.Description, p.Title)
		assert.NotEmpty(t, p.FieldConfig.Defaults.Unit, p.Title)
		assert.Equal(t, "prometheus ${datasource}", p.Datasource.Type+" "+p.Datasource.UID, p.Title)
		require.NotEmpty(t, p.Targets, p.Title)
		for i, target := range p.Targets {
			assert.Equal(t, string(rune('A'+i)), target.RefID, p.Title)
			assert.NotEmpty(t, target.LegendFormat, p.Title)
			assert.NotContains(t, variables.Replace(target.Expr), "$", p.Title)
		}
	}
}

// The alerts fire when they should, and not otherwise.
func TestAlerts(t *testing.T) {
	t.Parallel()
	needPrometheus(t)
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "../examples/prometheus"
		out, err := cmd.CombinedOutput()
		assert.NoError(t, err, "%s", out)
	}
}

// Every expression of the dashboard and of the alerts has data in a real Prometheus that
// scrapes a real Caddy.
func TestDashboardsHaveData(t *testing.T) {
	t.Parallel()
	needPrometheus(t)
	e := startEngines(t, 2, 1, 2)
	c := start(t, "http", "", "handle /metrics {\nmetrics\n}\nepd_proxy {\n"+
		e.block("encode_limit 8", "prefill_limit 8", "decode_limit 1", "decode health_interval 200ms")+"\n}")
	p := startPrometheus(t, strings.TrimPrefix(c.URL, "http://"))
	e.decode[1].Kill()
	for range 2 { // new series have no rate yet
		c.liveThrough(t, e)
		p.catchUp(t)
	}

	for _, panel := range readDashboard(t).Panels {
		for _, target := range panel.Targets {
			assert.Eventually(t, func() bool { return p.has(variables.Replace(target.Expr)) }, waitLong, tick, "%s: no data for %s", panel.Title, target.Expr)
		}
	}
	rules := p.rules(t)
	require.NotEmpty(t, rules)
	for _, r := range rules {
		for _, vector := range vectors(t, r) {
			assert.Eventually(t, func() bool { return p.has(vector) }, waitLong, tick, "%s: no data for %s", r.Name, vector)
		}
	}
	for _, r := range p.rules(t) {
		assert.Equal(t, "ok", r.Health, "%s: %s", r.Name, r.LastError)
	}
	assert.Eventually(t, func() bool { return p.has(`ALERTS{alertname="EPDUpstreamDown", stage="decode"}`) }, waitLong, tick, "no alert for an instance that is down")
}

// vectors are the expressions that alerts compare with numbers: they have values at all times.
func vectors(t *testing.T, r rule) (list []string) {
	t.Helper()
	if r.Type == "recording" {
		return []string{r.Query}
	}
	for _, clause := range and.Split(r.Query, -1) {
		vector := threshold.ReplaceAllString(clause, "")
		assert.NotEqual(t, clause, vector, "%s compares nothing", r.Name)
		list = append(list, vector)
	}
	return list
}

var (
	and       = regexp.MustCompile(` and (on \(.*?\) )?`)
	threshold = regexp.MustCompile(` (==|>) [0-9.]+$`)
)

// liveThrough sends requests that affect every metric: of all kinds, some that fail,
// one that is rejected, one that waits.
func (c *caddy) liveThrough(t *testing.T, e *engines) {
	t.Helper()
	for n := range 4 {
		require.NoError(t, c.check(t, c.Client, mixed(n)))
	}
	r := c.do(t, http.MethodPost, "/v1/completions", `{"model":"fake","prompt":"x"}`)
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
	require.Equal(t, http.StatusBadRequest, c.post(t, "{").StatusCode)

	setFault(fault{Kind: fakevllm.Status, Code: 500, Match: "FAIL"}, e.encode...)
	require.Equal(t, http.StatusInternalServerError, c.post(t, chat("", image("FAIL"))).StatusCode)
	setFault(fault{Kind: fakevllm.CutMiddle, Match: "BREAK"}, e.decode...)
	err := c.check(t, c.Client, stream(chat("", text("BREAK"))))
	require.True(t, errors.Is(err, errBrokeOff), "%v", err)

	release := c.occupy(t, chat("", text("HELD")), "HELD", e.decode[0])
	answered := make(chan error)
	go func() { answered <- c.check(t, c.Client, chat("", text("LATE"))) }()
	require.Eventually(t, func() bool {
		return strings.Contains(c.admin(t, "/metrics"), `caddy_epd_stage_requests_waiting{stage="decode"} 1`)
	}, waitLong, tick)
	release()
	require.NoError(t, <-answered)
}
