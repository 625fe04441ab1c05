//go:build unix

package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// failedEvent is the failure of a stream that ended with an error event.
const failedEvent = "error event"

// stream is the state of reading a stream of events.
type stream struct {
	sum      map[string]any // of all events
	id       any            // the same in all events
	usages   int            // events with only the usage
	finished map[any]bool   // choices, by index
	done     bool
	failed   string // the first defect
}

// readStream adds up the events of a stream, and looks for defects that clients do not handle.
func (a *answer) readStream(r io.Reader) error {
	s := stream{sum: map[string]any{}, finished: map[any]bool{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for open := false; lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if ok && open {
			s.fail("two events without an empty line between them")
		}
		open = lines.Text() != "" && (ok || open)
		if !ok {
			continue
		}
		if err := s.event(data); err != nil {
			return err
		}
	}
	if !s.done {
		s.fail("no [DONE]")
	}
	a.Body, a.Failed = s.sum, s.failed
	if a.Failed == failedEvent {
		return nil // the connection may end after an event
	}
	return lines.Err()
}

func (s *stream) fail(why string) { s.failed = cmp.Or(s.failed, why) }

func (s *stream) event(data string) error {
	if s.done {
		s.fail("an event after [DONE]")
	}
	if data == "[DONE]" {
		s.done = true
		return nil
	}
	var event map[string]any
	if err := json.Unmarshal([]byte(data), &event); err != nil {
		return fmt.Errorf("event %q: %w", data, err)
	}
	if event["error"] != nil {
		s.fail(failedEvent)
	} else {
		s.check(event)
	}
	add(s.sum, lasting(event).(map[string]any))
	return nil
}

// check checks what the sum does not show.
func (s *stream) check(event map[string]any) {
	if s.id == nil {
		s.id = event["id"]
	}
	if s.id != event["id"] {
		s.fail("the id changes")
	}
	choices, _ := event["choices"].([]any)
	if len(choices) == 0 && event["usage"] != nil {
		if s.usages++; s.usages > 1 {
			s.fail("usage twice")
		}
	}
	for _, c := range choices {
		choice, _ := c.(map[string]any)
		if s.finished[choice["index"]] {
			s.fail("a choice goes on after its finish_reason")
		}
		s.finished[choice["index"]] = choice["finish_reason"] != nil
	}
}

// grows are the members of which each event has a piece.
var grows = []string{"content", "reasoning", "reasoning_content", "text", "arguments"}

// add adds an event, or a part of one, to the sum.
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

// join appends a list to another; elements with an index are added to the element with that index.
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
