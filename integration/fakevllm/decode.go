package fakevllm

import "net/http"

// decode answers the client, with the KV from prefill or by doing the prefill itself.
func (x *exchange) decode() (*answer, error) {
	if err := x.resolve(); err != nil {
		return nil, err
	}
	if err := x.obtainKV(); err != nil {
		return nil, err
	}
	if err := pause(x.context(), x.engine.options.Delay); err != nil {
		return nil, err
	}
	texts := x.prompt.answers(x.members)
	if x.members.is("stream", "true") {
		return x.stream(texts...), nil
	}
	return jsonAnswer(http.StatusOK, marshal(x.completion("stop", texts...))), nil
}

// obtainKV reads the KV that the request refers to, or consumes the embeddings to
// compute it here. Each part of a request reads on its own: the second one finds the blocks freed.
func (x *exchange) obtainKV() error {
	if !x.bringsKV() {
		return x.computeKV()
	}
	if x.scoresPrompt() {
		return engineFailure("there are no log probabilities of a prompt whose KV was computed elsewhere")
	}
	if x.engine.options.Mooncake {
		return x.engine.cluster.pull(x.members["kv_transfer_params"], x.fingerprint(x.members))
	}
	for _, part := range parts(x.members) {
		if err := x.engine.cluster.read(x.members["kv_transfer_params"], x.fingerprint(part)); err != nil {
			return err
		}
	}
	return nil
}

// computeKV computes the prompt here. If there is a prefill stage, this engine cannot
// receive embeddings and encodes all media itself.
func (x *exchange) computeKV() error {
	if !x.engine.options.RequireKV {
		return x.consume()
	}
	if x.handsOver() && !x.engine.options.ComputesPrompts {
		return engineFailure("kv_transfer_params missing: this engine does not prefill")
	}
	if x.members.has("ec_transfer_params") || x.referred {
		return engineFailure("this engine consumes no embeddings")
	}
	return nil
}

// bringsKV reports whether the request has KV from a prefill. Empty parameters do not count.
func (x *exchange) bringsKV() bool {
	return x.members.has("kv_transfer_params") && compact(x.members["kv_transfer_params"]) != "{}"
}

func (x *exchange) checkDecode() error {
	if !x.bringsKV() {
		return nil
	}
	if x.members.has("ec_transfer_params") && !x.engine.options.KeepHandles {
		return badRequest("ec_transfer_params beside kv_transfer_params: the prefill has consumed them")
	}
	if x.engine.options.Mooncake {
		return x.checkMooncakeDecode()
	}
	params, err := parseObject(x.members["kv_transfer_params"])
	if err == nil && params.is("do_remote_decode", "true") {
		return badRequest("do_remote_decode is true: these are a prefill's kv_transfer_params")
	}
	return nil // their values are checked when the blocks are read
}
