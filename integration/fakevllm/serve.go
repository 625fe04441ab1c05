package fakevllm

import (
	"cmp"
	"net/http"
	"time"
)

// serve handles every request to the engine.
func (e *Engine) serve(w http.ResponseWriter, r *http.Request) {
	e.sign(w.Header())
	if r.Header.Get("Origin") != "" { // as vLLM's CORS middleware does
		w.Header().Set("Access-Control-Allow-Origin", "*")
	}
	if r.Method == http.MethodGet && r.URL.Path == "/health" {
		e.health(r)
		return
	}
	x, err := e.receive(w, r)
	defer x.end()
	if err != nil {
		x.refuseTruncated(err)
		return
	}
	a, err := x.answer()
	x.finish(a, err)
}

// sign sets the headers that identify the engine. The request id is random,
// so that tests detect a proxy that passes it on.
func (e *Engine) sign(h http.Header) {
	h.Set("Server", "uvicorn")
	h.Set("X-Request-Id", "engine-"+randomHex(8))
	if e.options.Role == Decode {
		h.Set("X-Engine", e.Name())
	}
}

// health answers 200 without a body, as net/http does on return.
func (e *Engine) health(r *http.Request) {
	e.reports.health()
	if replaced := e.faults.hang(); replaced != nil && waitFor(r.Context(), replaced) != nil {
		reset(connectionOf(r).conn)
		panic(http.ErrAbortHandler)
	}
}

// answer runs all checks of a request in vLLM's order: middleware, router, contract;
// then the fault and the role itself.
func (x *exchange) answer() (*answer, error) {
	if key := x.engine.options.APIKey; key != "" && x.r.Header.Get("Authorization") != "Bearer "+key {
		return nil, unauthorized()
	}
	s := x.route()
	if s == nil {
		return nil, notFound(x.r.Method, x.r.URL.Path)
	}
	for _, check := range s.checks {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if a, err := x.strike(); a != nil || err != nil {
		return a, err
	}
	return s.serve()
}

// service is how an engine handles a request.
type service struct {
	checks []func() error // of the request alone, before any fault
	serve  func() (*answer, error)
}

// route returns nil for paths that the engine's role does not serve.
func (x *exchange) route() *service {
	role := x.engine.options.Role
	switch x.r.Method + " " + x.r.URL.Path {
	case "GET /v1/models":
		return &service{serve: x.models}
	case "GET /version":
		return &service{serve: x.version}
	case "POST /start_profile", "POST /stop_profile":
		if !x.engine.options.Profiling {
			return nil
		}
		return &service{serve: x.profile}
	case "POST /v1/completions":
		if role == Encode {
			return nil
		}
	case "POST /v1/chat/completions":
	default:
		return nil
	}
	switch role {
	case Encode:
		return &service{x.checks(x.checkEncode), x.encode}
	case Prefill:
		return &service{x.checks(x.checkPrefill), x.prefill}
	default:
		return &service{x.checks(x.checkDecode), x.decode}
	}
}

// models answers with a list of the one model.
func (x *exchange) models() (*answer, error) {
	model := x.engine.options.Model
	return jsonAnswer(http.StatusOK, marshal(map[string]any{
		"object": "list",
		"data": []any{map[string]any{
			"id": model, "object": "model", "created": time.Now().Unix(), "owned_by": "vllm",
			"root": model, "parent": nil, "max_model_len": cmp.Or(x.engine.options.MaxModelLen, 32768),
		}},
	})), nil
}

func (x *exchange) version() (*answer, error) {
	return jsonAnswer(http.StatusOK, marshal(map[string]string{"version": x.engine.options.Version})), nil
}

// profile answers 200 without a body, as vLLM does.
func (x *exchange) profile() (*answer, error) {
	return &answer{http.StatusOK, http.Header{"Content-Length": {"0"}}, [][]byte{nil}}, nil
}
