package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// answer is what a client got, in a form in which two answers to one request are equal.
type answer struct {
	Status int
	// Body is the JSON of a whole answer, or what the events of a stream add up to, without
	// what is new in each answer (ids, times) and without members that are null.
	Body any
	// Failed says that a stream ended by an error event, or without [DONE].
	Failed string
}

// ask sends a request and reads the answer to its end.
func ask(ctx context.Context, client *http.Client, base string, r requests.Request) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Status: resp.StatusCode}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return a, a.readStream(resp.Body)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	if json.Unmarshal(data, &a.Body) != nil {
		a.Body = string(data)
	}
	a.Body = comparable(a.Body)
	return a, nil
}

// readStream adds up the events of a stream.
func (a *answer) readStream(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	sum, done := map[string]any{}, false
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case !ok:
		case data == "[DONE]":
			done = true
		default:
			var event map[string]any
			if err := json.Unmarshal([]byte(data), &event); err != nil {
				return fmt.Errorf("event %q: %w", data, err)
			}
			if event["error"] != nil {
				a.Failed = failedEvent
			}
			add(sum, comparable(event).(map[string]any))
		}
	}
	if !done {
		a.Failed = cmp.Or(a.Failed, "no [DONE]")
	}
	a.Body = sum
	if a.Failed == failedEvent {
		return nil // after the event, the connection breaks
	}
	return lines.Err()
}

// perAnswer are the members that differ between two answers to one request.
var perAnswer = []string{"id", "created", "system_fingerprint", "request_id"}

// comparable returns a value of JSON without what differs between equal answers.
func comparable(v any) any {
	switch v := v.(type) {
	case map[string]any:
		maps.DeleteFunc(v, func(name string, value any) bool { return value == nil || slices.Contains(perAnswer, name) })
		for name, value := range v {
			v[name] = comparable(value)
		}
	case []any:
		for i := range v {
			v[i] = comparable(v[i])
		}
	}
	return v
}

// grows are the members of a stream's events of which each event has a piece.
var grows = []string{"content", "reasoning", "reasoning_content", "text", "arguments"}

// add adds an event, or a part of one, to what came before it.
func add(sum, event map[string]any) {
	for name, value := range event {
		before := sum[name]
		switch value := value.(type) {
		case map[string]any:
			if before, ok := before.(map[string]any); ok {
				add(before, value)
				continue
			}
		case []any:
			if before, ok := before.([]any); ok {
				sum[name] = join(before, value)
				continue
			}
		case string:
			if before, ok := before.(string); ok && slices.Contains(grows, name) {
				sum[name] = before + value
				continue
			}
		}
		sum[name] = value
	}
}

// join appends a list to one, but for elements with an index, which are added to those with the same.
func join(before, list []any) []any {
	for _, element := range list {
		event, _ := element.(map[string]any)
		at := slices.IndexFunc(before, func(b any) bool {
			o, _ := b.(map[string]any)
			return event["index"] != nil && o["index"] == event["index"]
		})
		if at < 0 {
			before = append(before, element)
		} else {
			add(before[at].(map[string]any), event)
		}
	}
	return before
}

// byIndex puts the choices in order: those of a stream come in any.
func byIndex(list []any) []any {
	slices.SortStableFunc(list, func(a, b any) int { return cmp.Compare(index(a), index(b)) })
	return list
}

func index(v any) float64 {
	o, _ := v.(map[string]any)
	i, _ := o["index"].(float64)
	return i
}

// tolerance is how much numbers may differ: log probabilities depend a little on what else is in a batch.
const tolerance = 1e-3

// difference names the first place where two answers differ, or returns nothing.
func difference(want, got answer) string {
	switch {
	case want.Status != got.Status:
		return fmt.Sprintf("status: %d, not %d: %s", got.Status, want.Status, brief(got.Body))
	case want.Status >= http.StatusBadRequest:
		return errorForm(got.Body)
	case want.Failed != got.Failed:
		return fmt.Sprintf("end of the stream: %s, not %s", cmp.Or(got.Failed, "[DONE]"), cmp.Or(want.Failed, "[DONE]"))
	}
	return differs("", want.Body, got.Body)
}

// errorForm says what is wrong with the body of an error: every client expects OpenAI's form.
func errorForm(body any) string {
	o, _ := body.(map[string]any)
	inner, _ := o["error"].(map[string]any)
	if _, ok := inner["message"].(string); !ok {
		return "error: not in OpenAI's form: " + brief(body)
	}
	return ""
}

func differs(path string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		for _, name := range slices.Sorted(maps.Keys(both(w, g))) {
			if d := differs(path+"."+name, w[name], g[name]); d != "" {
				return d
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		if strings.HasSuffix(path, "choices") {
			w, g = byIndex(w), byIndex(g)
		}
		for i := range w {
			if d := differs(fmt.Sprintf("%s[%d]", path, i), w[i], g[i]); d != "" {
				return d
			}
		}
		return ""
	case float64:
		if g, ok := got.(float64); ok && math.Abs(g-w) <= tolerance {
			return ""
		}
	default:
		if want == got {
			return ""
		}
	}
	return fmt.Sprintf("%s: %s, not %s", strings.TrimPrefix(path, "."), brief(got), brief(want))
}

func both(a, b map[string]any) map[string]any {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// brief is the beginning of a value's JSON.
func brief(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data[:min(len(data), 200)])
}

// failedEvent is how a stream ends that failed after it had begun.
const failedEvent = "error event"
