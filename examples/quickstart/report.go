package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// report is an entry of Caddy's access log. The member epd is epd_proxy's, the others
// are Caddy's own.
type report struct {
	Request struct {
		Method string `json:"method"`
		URI    string `json:"uri"`
	} `json:"request"`
	Status int `json:"status"`
	EPD    struct {
		RequestID string  `json:"request_id"`
		Outcome   string  `json:"outcome"`
		Duration  seconds `json:"duration"`
		Encode    *stage  `json:"encode"`
		Prefill   *stage  `json:"prefill"`
		Decode    *stage  `json:"decode"`
	} `json:"epd"`
}

// stage is the part of an entry about one stage.
type stage struct {
	Duration  seconds  `json:"duration"`
	Upstreams []string `json:"upstreams"`
}

type seconds float64

func (s seconds) String() string { return fmt.Sprintf("%.1f ms", float64(s)*1000) }

// readReports reads an access log to its end.
func readReports(log io.ReadCloser) <-chan report {
	reports := make(chan report)
	go func() {
		defer close(reports)
		defer func() { _ = log.Close() }()
		entries := json.NewDecoder(log)
		for {
			var r report
			if entries.Decode(&r) != nil {
				return
			}
			reports <- r
		}
	}()
	return reports
}

// stages are the stages of the request.
func (r report) stages(yield func(string, *stage) bool) {
	for _, s := range []struct {
		name  string
		stage *stage
	}{{"encode", r.EPD.Encode}, {"prefill", r.EPD.Prefill}, {"decode", r.EPD.Decode}} {
		if s.stage != nil && !yield(s.name, s.stage) {
			return
		}
	}
}

// table formats the report in several lines.
func (r report) table(e *engines) string {
	var b strings.Builder
	for name, s := range r.stages {
		var at []string
		for _, upstream := range s.Upstreams {
			if engine, ok := e.find(upstream); ok {
				at = append(at, fmt.Sprintf("%s (%s)", engine.Name(), engine.Addr()))
			}
		}
		fmt.Fprintf(&b, "  %-8s %10s   %s\n", name, s.Duration, strings.Join(at, ", "))
	}
	fmt.Fprintf(&b, "  %-8s %10s\n", "total", r.EPD.Duration)
	return b.String()
}

// line formats the report in one line.
func (r report) line(e *engines) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %d %s", r.Request.Method, r.Request.URI, r.Status, r.EPD.Outcome)
	for name, s := range r.stages {
		fmt.Fprintf(&b, ", %s %s", name, s.Duration)
		for _, upstream := range s.Upstreams {
			if engine, ok := e.find(upstream); ok {
				fmt.Fprintf(&b, " %s", engine.Name())
			}
		}
	}
	fmt.Fprintf(&b, ", total %s", r.EPD.Duration)
	return b.String()
}
