package epdhandler

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// modelsTimeout is how long an instance may take to list its models. The list needs no
// computation, so an instance that takes longer hangs.
const modelsTimeout = 5 * time.Second

// models answers with the list of models of a decode instance, or one model of it. Any
// failure leads to another instance, because the request is cheap.
func (x *exchange) models() {
	g := x.newGeneration(nil)
	g.decoding.turn = nil // it takes no slot
	g.decoding.late = g.decoding.left
	for {
		list, entries, f := g.listModels()
		switch {
		case f == nil:
			g.answerModels(list, entries)
			return
		case f.final:
			g.fail(f)
			return
		}
	}
}

func (g *generation) listModels() (list *stream.Answer, entries []json.RawMessage, f *failure) {
	ctx, leave := g.report.enter(g.r.Context(), &g.report.decode, g.decoding)
	defer func() { leave(f) }()
	ctx, clock, cancel := stream.Watch(ctx, stream.Limit{Option: "GET " + modelsPath, Time: modelsTimeout}, stream.Limit{})
	defer cancel()
	list, f = g.ask(ctx, g.decoding, engine.Call{
		Method: http.MethodGet, // HEAD too: engines only support GET, and Go's server omits the body
		Path:   modelsPath,
		ID:     g.decoding.id(g.engineID),
		IDHead: g.engineID + "-",
		Clock:  clock,
	})
	if f == nil {
		var said struct{ Data []json.RawMessage }
		if json.Unmarshal(list.Body.Bytes(), &said) != nil || said.Data == nil {
			f = nonsense(g.decoding.attempt, errors.New("the answer is no list of models"))
		}
		entries = said.Data
	}
	if f != nil {
		g.settle(g.decoding, f)
	}
	return list, entries, f
}

// answerModels answers with the list, or with the model that the path names; the name may
// contain slashes.
func (g *generation) answerModels(list *stream.Answer, entries []json.RawMessage) {
	if id, one := strings.CutPrefix(g.r.URL.Path, modelsPath+"/"); one {
		i := slices.IndexFunc(entries, func(entry json.RawMessage) bool {
			var model struct{ ID string }
			return json.Unmarshal(entry, &model) == nil && model.ID == id
		})
		if i < 0 {
			e := badRequest(http.StatusNotFound, "model_not_found", "there is no such model; GET %s lists them", modelsPath)
			e.Param = "model"
			g.reject(e)
			return
		}
		list.Body.Reset()
		_, _ = list.Body.Write(entries[i])
	}
	g.report.outcome = telemetry.OK
	list.Header().Set("Content-Length", strconv.Itoa(list.Body.Len()))
	g.decoding.succeeds()
	list.Deliver(g.w, g.id)
}
