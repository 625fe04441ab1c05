package fakevllm

import (
	"encoding/json"
	"net/http"
)

// prefillStub is the kv_transfer_params of a prefill request, canonical: the KV
// is for somebody else, and nothing is known about him yet.
const prefillStub = `{"do_remote_decode":true,"do_remote_prefill":false,"remote_block_ids":null,` +
	`"remote_engine_id":null,"remote_host":null,"remote_port":null}`

// prefill computes the KV of a request and keeps it for a decode engine.
func (x *exchange) prefill() (*answer, error) {
	if err := x.resolve(); err != nil {
		return nil, err
	}
	if err := x.consume(); err != nil {
		return nil, err
	}
	if err := pause(x.context(), x.engine.options.Delay); err != nil {
		return nil, err
	}
	c := x.completion("g", "length", 1)
	c.KVTransferParams = x.engine.cluster.hold(kvParams{
		DoRemotePrefill: true,
		RemoteEngineID:  x.engine.uuid,
		RemoteRequestID: c.ID,
		RemoteHost:      "127.0.0.1",
		RemotePort:      x.engine.port,
	}, x.fingerprint())
	return jsonAnswer(http.StatusOK, marshal(c)), nil
}

func (x *exchange) checkPrefill() error {
	o := x.members
	if got := canonical(o["kv_transfer_params"]); got != prefillStub {
		return badRequest("kv_transfer_params of a prefill request must be %s, got %s", prefillStub, got)
	}
	if !o.is("stream", "false") {
		return badRequest("stream of a prefill request must be false, got %s", o["stream"])
	}
	if o.has("stream_options") {
		return badRequest("stream options can only be defined when stream is true")
	}
	if !o.is("max_tokens", "1") {
		return badRequest("max_tokens of a prefill request must be 1, got %s", o["max_tokens"])
	}
	if o.has("max_completion_tokens") && !o.is("max_completion_tokens", "1") {
		return badRequest("max_completion_tokens of a prefill request must be 1, got %s", o["max_completion_tokens"])
	}
	if err := checkMinTokens(o); err != nil {
		return err
	}
	if o.is("tool_choice", `"required"`) || len(o["tool_choice"]) > 0 && o["tool_choice"][0] == '{' {
		return engineFailure("tool_choice %s: guided output cannot finish in one token", o["tool_choice"])
	}
	return nil
}

func checkMinTokens(o object) error {
	if !o.has("min_tokens") {
		return nil
	}
	var n int
	if err := json.Unmarshal(o["min_tokens"], &n); err != nil {
		return badRequest("min_tokens: %v", err)
	}
	if n > 1 {
		return badRequest("min_tokens must be less than or equal to max_tokens=1, got %d.", n)
	}
	return nil
}
