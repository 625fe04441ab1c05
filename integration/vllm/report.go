//go:build unix

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// row is the result of one topology or one fault.
type row struct {
	release release
	model   string
	what    string

	equal, deliberate, unexplained int
}

// report collects the results.
type report struct {
	rows        []*row
	reasons     map[string]int
	unexplained []string
	benchmark   []string
}

func (r *report) row(f *fleet, what string) *row {
	at := slices.IndexFunc(r.rows, func(w *row) bool {
		return w.release == f.release && w.model == f.model.name && w.what == what
	})
	if at < 0 {
		at = len(r.rows)
		r.rows = append(r.rows, &row{release: f.release, model: f.model.name, what: what})
	}
	return r.rows[at]
}

// compared records two answers to one request.
func (r *report) compared(f *fleet, topology string, q requests.Request, single, proxy answer) {
	row := r.row(f, topology)
	where := fmt.Sprintf("%s, %s, %s", f.release, f.model.name, topology)
	d := difference(single, proxy)
	if d == "" {
		row.equal++
		return
	}
	if why := reason(where, q.Name, single, proxy); why != "" {
		row.deliberate++
		r.reasons[why]++
		return
	}
	r.failed(f, topology, q.Name+": "+d)
}

// passed records a check that passed.
func (r *report) passed(f *fleet, what string) { r.row(f, what).equal++ }

// failed records a failure without an intended reason.
func (r *report) failed(f *fleet, what, problem string) {
	r.row(f, what).unexplained++
	line := fmt.Sprintf("%s, %s, %s: %s", f.release, f.model.name, what, problem)
	r.unexplained = append(r.unexplained, line)
	say("DIFFERENT: %s", line)
}

// measured records median and range of several rounds.
func (r *report) measured(contender string, rounds []measured) {
	line := contender + ":"
	for _, column := range []struct {
		name, form string
		value      func(measured) float64
	}{
		{"requests/s", "%.2f", func(m measured) float64 { return m.Throughput }},
		{"TTFT median, ms", "%.0f", func(m measured) float64 { return m.TTFT }},
		{"mean", "%.0f", func(m measured) float64 { return m.MeanTTFT }},
		{"p99", "%.0f", func(m measured) float64 { return m.P99TTFT }},
	} {
		var values []float64
		for _, m := range rounds {
			values = append(values, column.value(m))
		}
		slices.Sort(values)
		line += fmt.Sprintf("  %s "+column.form+" ("+column.form+" to "+column.form+")", column.name, values[len(values)/2], values[0], values[len(values)-1])
	}
	r.benchmark = append(r.benchmark, line)
}

// write writes the table, the intended differences and the unexplained ones.
func (r *report) write(w io.Writer) {
	fmt.Fprintln(w)
	for _, why := range slices.Sorted(maps.Keys(r.reasons)) {
		fmt.Fprintf(w, "deliberate (%d): %s\n", r.reasons[why], why)
	}
	for _, line := range r.unexplained {
		fmt.Fprintf(w, "unexplained: %s\n", line)
	}
	for _, line := range r.benchmark {
		fmt.Fprintf(w, "benchmark: %s\n", line)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nvLLM\tmodel\twhat\tcompared\tequal\tdeliberate\tunexplained")
	for _, row := range r.rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\n", row.release, row.model, row.what,
			row.equal+row.deliberate+row.unexplained, row.equal, row.deliberate, row.unexplained)
	}
	table.Flush()
	fmt.Fprintln(w, strings.Repeat("-", 20))
	fmt.Fprintf(w, "%d unexplained\n", len(r.unexplained))
}
