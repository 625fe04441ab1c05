package fakevllm

import (
	"fmt"
	"net/http"
	"strings"
)

// apiError is a request's failure as the client sees it.
type apiError struct {
	code       int
	message    string
	body       any
	late       bool // no fault of the request, and found out when it was under way
	statusSent bool // in a stream, which has no event yet
}

func (e *apiError) Error() string { return e.message }

// newAPIError has the shape of all errors that vLLM makes itself.
func newAPIError(code int, param any, message string) *apiError {
	body := map[string]any{
		"error": map[string]any{"message": message, "type": errorType(code), "param": param, "code": code},
	}
	return &apiError{code: code, message: message, body: body}
}

// errorType names a status as vLLM does: BadRequestError, InternalServerError.
func errorType(code int) string {
	name := strings.ReplaceAll(http.StatusText(code), " ", "")
	return strings.TrimSuffix(name, "Error") + "Error"
}

// badRequest is for a request that no engine could serve.
func badRequest(format string, args ...any) error {
	return newAPIError(http.StatusBadRequest, nil, fmt.Sprintf(format, args...))
}

// lateRefusal is for a request that vLLM finds wrong when a stream has its status already.
func lateRefusal(format string, args ...any) error {
	e := newAPIError(http.StatusBadRequest, nil, fmt.Sprintf(format, args...))
	e.statusSent = true
	return e
}

// engineFailure is for a request that is well-formed but makes an engine fail.
func engineFailure(format string, args ...any) error {
	return newAPIError(http.StatusInternalServerError, nil, fmt.Sprintf(format, args...))
}

// lateFailure is vLLM's answer to what is no fault of the request.
func lateFailure() error {
	e := newAPIError(http.StatusInternalServerError, nil, "Internal server error")
	e.late = true
	return e
}

func unknownModel(model string) error {
	return newAPIError(http.StatusNotFound, "model", fmt.Sprintf("The model `%s` does not exist.", model))
}

// These two do not come from vLLM's handlers but from its middleware and its
// router, which have their own shapes.
func unauthorized() error {
	return &apiError{code: http.StatusUnauthorized, message: "Unauthorized", body: map[string]any{"error": "Unauthorized"}}
}

func notFound(method, path string) error {
	return &apiError{code: http.StatusNotFound, message: method + " " + path + " not found", body: map[string]any{"detail": "Not Found"}}
}
