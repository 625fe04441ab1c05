package fakevllm

import (
	"maps"
	"net/http"
	"regexp"
	"slices"
)

// encodeID is the request's id, the index of the item, and a suffix that is unique to the attempt.
var encodeID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,141}:[0-9]+:[0-9a-f]{6}$`)

// encodeMembers are all members that an encode request may have. The other members of a
// client's request must not be sent to encoders.
var encodeMembers = []string{
	"model", "messages", "max_tokens", "stream", "mm_processor_kwargs", "media_io_kwargs", "chat_template", "chat_template_kwargs", "priority", "session_id",
}

// encode puts the embedding of one media item into the cluster.
func (x *exchange) encode() (*answer, error) {
	if err := pause(x.context(), x.engine.options.Delay); err != nil {
		return nil, err
	}
	if x.engine.options.Modern {
		return x.encodeBatch()
	}
	i, c := x.prompt.items[0], x.completion("length", "")
	if x.engine.options.Handles {
		t := newTransfer(i.modality, x.engine.port)
		x.engine.cluster.offer(i.hash, t)
		c.ECTransferParams = map[string]transfer{i.hash: t}
	} else {
		x.engine.cluster.share(i.hash)
	}
	return jsonAnswer(http.StatusOK, marshal(c)), nil
}

func (x *exchange) checkEncode() error {
	if !encodeID.MatchString(x.id) {
		return badRequest("x-request-id of an encode request must be parent:index:6 hex, got %q", x.id)
	}
	for _, name := range slices.Sorted(maps.Keys(x.members)) {
		if !slices.Contains(encodeMembers, name) && !(name == "ec_transfer_params" && x.engine.options.Modern) {
			return badRequest("an encode request must not have %q", name)
		}
	}
	if !x.members.is("max_tokens", "1") {
		return badRequest("max_tokens of an encode request must be 1, got %s", x.members["max_tokens"])
	}
	if !x.members.is("stream", "false") {
		return badRequest("stream of an encode request must be false, got %s", x.members["stream"])
	}
	if err := x.checkAlone(); err != nil {
		return err
	}
	if x.engine.options.Modern {
		if err := x.checkBatch(); err != nil {
			return err
		}
		return x.readTarget()
	}
	return x.checkItem()
}

// checkAlone requires forms of parts that vLLM accepts in a message without text.
func (x *exchange) checkAlone() error {
	messages, _ := array(x.members["messages"])
	for _, raw := range messages {
		message, _ := parseObject(raw)
		parts, _ := array(message["content"])
		for n, raw := range parts {
			if part, err := parseObject(raw); err == nil && len(x.prompt.texts) == 0 && !alone(part) {
				return badRequest("content[%d]: 7 validation errors for ValidatorIterator", n)
			}
		}
	}
	return nil
}

// checkItem requires a single message of the user that contains one media item and nothing else.
func (x *exchange) checkItem() error {
	p := x.prompt
	if len(p.roles) != 1 || p.roles[0] != "user" {
		return badRequest("an encode request has exactly one message, of the user, got messages of %q", p.roles)
	}
	if n := len(p.texts) + len(p.items); n != 1 {
		return badRequest("an encode request has exactly one content part, got %d", n)
	}
	if len(p.items) == 0 || p.items[0].ready {
		return badRequest("the content part of an encode request must be media to encode")
	}
	return nil
}
