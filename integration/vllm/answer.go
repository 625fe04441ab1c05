//go:build unix

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// answer is a client's view of an answer, in a form in which two answers to one request are equal.
type answer struct {
	Status int
	Type   string // of the content
	// Body is the JSON of a whole answer, or the sum of the events of a stream. Values that
	// differ between answers (ids, times) are replaced by a mark; members that are null
	// are left out.
	Body any
	// Failed is the defect of a stream, or how it failed.
	Failed string
}

// ask sends a request and reads the answer to its end.
func ask(ctx context.Context, client *http.Client, base string, r requests.Request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	resp, err := post(ctx, client, base, r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Status: resp.StatusCode}
	a.Type, _, _ = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if a.Type == eventStream {
		return a, a.readStream(resp.Body)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	if json.Unmarshal(data, &a.Body) != nil {
		a.Body = string(data)
	}
	a.Body = lasting(a.Body)
	return a, nil
}

// post sends a request.
func post(ctx context.Context, client *http.Client, base string, r requests.Request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return client.Do(req)
}

const eventStream = "text/event-stream"

// lasting returns a JSON value without what differs between equal answers.
func lasting(v any) any {
	switch v := v.(type) {
	case map[string]any:
		maps.DeleteFunc(v, func(_ string, value any) bool { return value == nil })
		for name, value := range v {
			if slices.Contains(perAnswer, name) {
				v[name] = "…"
			} else {
				v[name] = lasting(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = lasting(v[i])
		}
	}
	return v
}

// perAnswer are the members whose values differ between two answers to one request.
var perAnswer = []string{"id", "created", "system_fingerprint", "request_id"}

// byIndex sorts choices: those of a stream come in any order.
func byIndex(list []any) []any {
	slices.SortStableFunc(list, func(a, b any) int { return cmp.Compare(index(a), index(b)) })
	return list
}

func index(v any) float64 {
	o, _ := v.(map[string]any)
	i, _ := o["index"].(float64)
	return i
}

// tolerance is the accepted difference of numbers: log probabilities depend slightly on the other requests in a batch.
const tolerance = 1e-3

// difference describes the first difference between two answers; empty if there is none.
func difference(want, got answer) string {
	switch {
	case want.Status != got.Status:
		return fmt.Sprintf("status: %d, not %d: %s", got.Status, want.Status, brief(got.Body))
	case want.Type != got.Type:
		return fmt.Sprintf("type: %q, not %q", got.Type, want.Type)
	case want.Status >= http.StatusBadRequest:
		return errorForm(got.Body)
	case want.Failed != got.Failed:
		return fmt.Sprintf("end of the stream: %s, not %s", cmp.Or(got.Failed, "[DONE]"), cmp.Or(want.Failed, "[DONE]"))
	}
	return differs("", want.Body, got.Body)
}

// errorForm returns the defect of an error's body: clients expect OpenAI's form.
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

// brief is the begin of a value's JSON.
func brief(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data[:min(len(data), 200)])
}
