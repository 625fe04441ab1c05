package fakevllm

import (
	"encoding/json"
	"maps"
)

// promptMembers are the members that affect the prefill: with other values the KV
// is different.
var promptMembers = []string{
	"messages", "prompt", "tools", "documents",
	"chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
	"mm_processor_kwargs", "media_io_kwargs",
}

// fingerprint is equal for requests that have the same KV. The order of members
// matters, because templates print tools as they are.
func fingerprint(o object) string {
	values := make([]string, len(promptMembers))
	for n, name := range promptMembers {
		values[n] = compact(o[name])
	}
	return digest(values...)
}

// fingerprint is that of one part of a request. For a modern engine, a reference counts as the item
// that it stands for, so it does not matter how media are written.
func (x *exchange) fingerprint(part object) string {
	if !x.engine.options.Modern || !x.members.has("messages") {
		return fingerprint(part)
	}
	o := maps.Clone(part)
	o["messages"] = withItems(x.members["messages"], x.prompt.items)
	return fingerprint(o)
}

// withItems replaces the parts by modality and key of their items. The messages were parsed
// before, so they are valid.
func withItems(messages json.RawMessage, items []item) json.RawMessage {
	list, _ := array(messages)
	for n, raw := range list {
		message, _ := parseObject(raw)
		parts, err := array(message["content"])
		if err != nil { // the content is text
			continue
		}
		for m := range parts {
			var keys []string
			for len(items) > 0 && items[0].message == n && items[0].part == m {
				keys = append(keys, items[0].modality, items[0].key)
				items = items[1:]
			}
			if keys != nil {
				parts[m] = marshal(keys)
			}
		}
		message["content"] = marshal(parts)
		list[n] = marshal(message)
	}
	return marshal(list)
}
