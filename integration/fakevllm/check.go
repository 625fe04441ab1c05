package fakevllm

import (
	"mime"
	"strconv"
)

// forbiddenHeaders control routers or the connection. A proxy must not pass them on from
// a client to an engine.
var forbiddenHeaders = []string{
	rankHeader, "X-Prefiller-Host-Port", "X-Encoder-Hosts-Ports", "Epp-Profile",
	"Expect", "Content-Encoding", "Range", "Te", "Trailer", "Upgrade",
}

// checks is the contract of a role's requests, most of which is common to all roles.
// The id is checked last, so that only an otherwise correct request claims it.
func (x *exchange) checks(role func() error) []func() error {
	return []func() error{
		x.checkLength, x.checkHeaders, x.checkBody, x.checkOptions, x.checkModel, x.checkPrompt, x.checkLimits, x.checkSampling, role,
		x.checkReferences, x.checkRank, x.claimTransfers, x.verify, x.checkID,
	}
}

func (x *exchange) checkLength() error {
	if len(x.r.TransferEncoding) > 0 {
		return badRequest("transfer-encoding %v: the body must have a content-length", x.r.TransferEncoding)
	}
	if length := x.r.Header.Get("Content-Length"); length != strconv.Itoa(len(x.body)) {
		return badRequest("content-length is %q, the body has %d bytes", length, len(x.body))
	}
	return nil
}

func (x *exchange) checkHeaders() error {
	for _, name := range forbiddenHeaders {
		if name == rankHeader && x.ranked() {
			continue // it depends on the body
		}
		if _, there := x.r.Header[name]; there {
			return badRequest("header %s must not reach an engine", name)
		}
	}
	contentType := x.r.Header.Values("Content-Type")
	if len(contentType) != 1 {
		return badRequest("content-type: want one value, got %q", contentType)
	}
	if media, _, err := mime.ParseMediaType(contentType[0]); err != nil || media != "application/json" {
		return badRequest("content-type must be application/json, got %q", contentType[0])
	}
	return nil
}

func (x *exchange) checkBody() error {
	members, err := parseBody(x.body)
	if err != nil {
		return badRequest("body: %v", err)
	}
	x.members = members
	return nil
}

func (x *exchange) checkModel() error {
	if !x.members.has("model") {
		return nil
	}
	if name, _ := stringOf(x.members["model"]); name != x.engine.options.Model {
		return unknownModel(name)
	}
	return nil
}

func (x *exchange) checkID() error {
	ids := x.r.Header.Values("X-Request-Id")
	if len(ids) != 1 || ids[0] == "" {
		return badRequest("x-request-id: want one value, got %q", ids)
	}
	if !x.engine.reports.claim(x) {
		return engineFailure("duplicate request id in flight: %s", x.id)
	}
	return nil
}

// checkPrompt parses what the path requires: the messages of a chat, or the prompt of a completion.
func (x *exchange) checkPrompt() error {
	member := "prompt"
	if x.isChat() {
		member = "messages"
	}
	if !x.members.has(member) {
		return badRequest("%s is missing", member)
	}
	p, err := readPrompt(x.members, x.engine.options.Modalities)
	if err != nil {
		return badRequest("%v", err)
	}
	x.prompt = p
	return nil
}

func (x *exchange) isChat() bool { return x.r.URL.Path == "/v1/chat/completions" }
