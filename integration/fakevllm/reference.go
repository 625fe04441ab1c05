package fakevllm

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// referenceKey is equal for an item and the references to it.
func (i item) referenceKey() string {
	uuid, _ := stringOf(i.uuid)
	return digest(i.modality, uuid, i.options)
}

// reference reports whether the part stands for an item that was encoded. A reference
// has a shape, where an embedding of the client has tensors.
func (i item) reference() bool {
	if !i.ready {
		return false
	}
	shape, err := parseObject(i.value)
	return err == nil && (i.uuid != nil || isFlat(shape))
}

// isFlat reports whether a value consists only of numbers and lists of numbers.
func isFlat(shape object) bool {
	for _, value := range shape {
		numbers, err := array(value)
		if err != nil {
			numbers = []json.RawMessage{value}
		}
		if slices.ContainsFunc(numbers, not(isNumber)) {
			return false
		}
	}
	return len(shape) > 0
}

func isNumber(raw json.RawMessage) bool {
	return len(raw) > 0 && strings.IndexByte("-0123456789", raw[0]) >= 0
}

func not[T any](f func(T) bool) func(T) bool {
	return func(v T) bool { return !f(v) }
}

// checkReferences checks what can be checked without the embeddings.
func (x *exchange) checkReferences() error {
	if !x.engine.options.Modern {
		return nil
	}
	for n, i := range x.prompt.items {
		if err := i.checkReference(); err != nil {
			return badRequest("item %d (%s): %v", n, i.kind, err)
		}
	}
	return checkWhole(x.prompt.items)
}

// checkReference also checks the uuid of media, because references may use it later.
func (i item) checkReference() error {
	if uuid, _ := stringOf(i.uuid); uuid == "" && (i.uuid != nil || i.reference()) {
		return errors.New("uuid must be a non-empty string")
	}
	if !i.reference() {
		return nil
	}
	shape, _ := parseObject(i.value)
	if !isFlat(shape) {
		return fmt.Errorf("want numbers and lists of numbers, got %s", i.value)
	}
	if i.modality == "video" && !shape.has("second_per_grid_ts") && !shape.has("timestamps") {
		return errors.New("a reference to a video without its timing changes the answer")
	}
	return nil
}

// checkWhole rejects media together with embeddings of their modality, and together with any reference,
// which only some models accept.
func checkWhole(items []item) error {
	references, media := false, false
	ready := make(map[string]bool)
	for _, i := range items {
		if was, known := ready[i.modality]; known && was != i.ready {
			return badRequest("Mixing raw %s and embedding inputs is not allowed", i.modality)
		}
		ready[i.modality] = i.ready
		references, media = references || i.reference(), media || !i.ready
	}
	if references && media {
		return badRequest("Failed to apply Qwen2_5OmniProcessor: a request is rewritten wholly or not at all")
	}
	return nil
}

// resolve replaces references by their items. After that, a request with references
// equals the request that the client has sent.
func (x *exchange) resolve() error {
	if !x.engine.options.Modern {
		return nil
	}
	for n, i := range x.prompt.items {
		if !i.reference() {
			continue
		}
		x.referred = true
		original, err := x.engine.cluster.refer(i)
		switch {
		case err == nil:
		case x.engine.options.ECExample:
			connectionOf(x.r).life.kill()
			return errKilled
		default:
			return err
		}
		original.message, original.part = i.message, i.part
		x.prompt.items[n] = original
	}
	return nil
}

// refer returns the item that a reference stands for.
func (c *Cluster) refer(i item) (item, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash, known := c.encoded[i.referenceKey()]
	if !known {
		return item{}, engineFailure("no embedding for uuid %s: no %s was encoded under it with these options", i.uuid, i.modality)
	}
	e := c.embeddings[hash]
	if got := canonical(i.value); got != e.metadata {
		return item{}, engineFailure("uuid %s: the shape is %s, not %s", i.uuid, cmp.Or(e.metadata, "unknown"), got)
	}
	return e.item, nil
}
