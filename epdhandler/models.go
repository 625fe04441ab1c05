package epdhandler

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

const modelsPath = "/v1/models"

// modelsTimeout is how long an instance may take to list its models. It knows them: one
// that takes longer hangs.
const modelsTimeout = 5 * time.Second

// models gives the client the list of models of a decode instance, or one of them. Any
// failure leads to another instance, for this costs engines nothing.
func (x *exchange) models() {
	x.begin()
	x.decoding.turn = nil // it does not wait for a slot
	x.decoding.late = x.decoding.left
	for {
		list, entries, f := x.listModels()
		switch {
		case f == nil:
			x.answerModels(list, entries)
			return
		case f.final:
			x.fail(f)
			return
		}
	}
}

// listModels asks one instance, and returns its answer and the models in that.
func (x *exchange) listModels() (list *stream.Answer, entries []json.RawMessage, f *failure) {
	ctx, leave := x.enter(&x.report.decode, x.decoding)
	defer func() { leave(f) }()
	ctx, clock, cancel := stream.Watch(ctx, stream.Limit{Option: "GET " + modelsPath, Time: modelsTimeout}, stream.Limit{})
	defer cancel()
	c := &call{
		method: http.MethodGet, // HEAD too: engines know only GET, and the server leaves the body out
		path:   modelsPath,
		id:     x.attemptID(x.decoding),
		idHead: x.engineID + "-",
		clock:  clock,
	}
	list, f = x.ask(ctx, x.decoding, c)
	if f == nil && json.Unmarshal(members(list.Body.Bytes())["data"], &entries) != nil {
		f = brokenAnswer("decode", c, errors.New("the answer is no list of models"))
	}
	if f != nil {
		x.settle(x.decoding, f)
	}
	return list, entries, f
}

// answerModels gives the client what it has asked for: the list, or the model that its
// path names, which may have slashes.
func (x *exchange) answerModels(list *stream.Answer, entries []json.RawMessage) {
	id, one := strings.CutPrefix(x.r.URL.Path, modelsPath+"/")
	if one {
		model := modelOf(entries, id)
		if model == nil {
			e := badRequest(http.StatusNotFound, "model_not_found", "there is no such model; GET %s lists them", modelsPath)
			e.Param = "model"
			x.reject(e)
			return
		}
		list.Body.Reset()
		_, _ = list.Body.Write(model)
	}
	x.report.outcome = outcomeOK
	list.Header().Set("Content-Length", strconv.Itoa(list.Body.Len()))
	x.decoding.succeeds()
	list.Deliver(x.w, x.id)
}

// modelOf returns the entry of a list that has this id, nil if none has.
func modelOf(entries []json.RawMessage, id string) json.RawMessage {
	for _, e := range entries {
		var name string
		if json.Unmarshal(members(e)["id"], &name) == nil && name == id {
			return e
		}
	}
	return nil
}
