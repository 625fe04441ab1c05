package fakevllm

import (
	"encoding/json"
	"maps"
)

// promptMembers are the members that shape what is prefilled. KV computed with
// other values of them is another request's KV.
var promptMembers = []string{
	"messages", "prompt", "tools", "documents",
	"chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
	"mm_processor_kwargs", "media_io_kwargs",
}

// fingerprint is the same for requests that have the same KV. The order of
// members counts: templates print tools as they are.
func fingerprint(o object) string {
	values := make([]string, len(promptMembers))
	for n, name := range promptMembers {
		values[n] = compact(o[name])
	}
	return digest(values...)
}

// fingerprint is that of one part of a request. It counts a reference of a request to a modern engine as the item
// that it stands for, so media are the same however they are written.
func (x *exchange) fingerprint(part object) string {
	if !x.engine.options.Modern || !x.members.has("messages") {
		return fingerprint(part)
	}
	o := maps.Clone(part)
	o["messages"] = withItems(x.members["messages"], x.prompt.items)
	return fingerprint(o)
}

// withItems puts modality and key of the items in the place of their parts. The
// prompt has been read out of these messages, so nothing in them is wrong.
func withItems(messages json.RawMessage, items []item) json.RawMessage {
	list, _ := array(messages)
	for n, raw := range list {
		message, _ := parseObject(raw)
		parts, err := array(message["content"])
		if err != nil { // it is text
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
