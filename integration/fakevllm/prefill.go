package fakevllm

import (
	"net/http"
	"slices"
)

// prefillStub is the canonical kv_transfer_params of a prefill request: the KV is for
// another engine, which is not known yet.
const prefillStub = `{"do_remote_decode":true,"do_remote_prefill":false,"remote_block_ids":null,` +
	`"remote_engine_id":null,"remote_host":null,"remote_port":null}`

// hold keeps the KV of one part of a request.
func (e *Engine) hold(id, fingerprint string) kvParams {
	return e.cluster.hold(kvParams{
		DoRemotePrefill: true,
		RemoteEngineID:  *e.uuid.Load(),
		RemoteRequestID: id,
		RemoteHost:      "127.0.0.1",
		RemotePort:      e.port,
	}, fingerprint, e.options.KVLease)
}

// prefill computes the KV of a request and keeps it for a decode engine. As in vLLM, each
// part has blocks, but the answer has only those of the first.
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
	c := x.completion("length", slices.Repeat([]string{"g"}, len(parts(x.members)))...)
	if x.engine.options.Mooncake {
		x.holdTransfer()
		return jsonAnswer(http.StatusOK, marshal(c)), nil
	}
	for n, part := range parts(x.members) {
		params := x.engine.hold(c.ID, x.fingerprint(part))
		if n == 0 && !x.beams() && !x.engine.options.NoHandOver {
			c.KVTransferParams = params
		}
	}
	return jsonAnswer(http.StatusOK, marshal(c)), nil
}

func (x *exchange) checkPrefill() error {
	o := x.members
	if x.engine.options.Mooncake {
		if err := x.checkMooncakePrefill(); err != nil {
			return err
		}
	} else if got := canonical(o["kv_transfer_params"]); got != prefillStub {
		return badRequest("kv_transfer_params of a prefill request must be %s, got %s", prefillStub, got)
	}
	if !o.is("stream", "false") {
		return badRequest("stream of a prefill request must be false, got %s", o["stream"])
	}
	if !o.is("max_tokens", "1") {
		return badRequest("max_tokens of a prefill request must be 1, got %s", o["max_tokens"])
	}
	if o.has("max_completion_tokens") && !o.is("max_completion_tokens", "1") {
		return badRequest("max_completion_tokens of a prefill request must be 1, got %s", o["max_completion_tokens"])
	}
	if o.is("tool_choice", `"required"`) || len(o["tool_choice"]) > 0 && o["tool_choice"][0] == '{' {
		return engineFailure("tool_choice %s: guided output cannot finish in one token", o["tool_choice"])
	}
	return nil
}
