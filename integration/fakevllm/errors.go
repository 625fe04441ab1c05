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
	late       bool // not an error in the request; found after its checks
	statusSent bool // in a stream that has no event yet
}

func (e *apiError) Error() string { return e.message }

// newAPIError returns an error in the form of all errors of vLLM's handlers.
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

// badRequest is for a request that is invalid for every engine.
func badRequest(format string, args ...any) error {
	return newAPIError(http.StatusBadRequest, nil, fmt.Sprintf(format, args...))
}

// lateRefusal is for an invalid request that vLLM rejects only after the status of a stream was sent.
func lateRefusal(format string, args ...any) error {
	e := newAPIError(http.StatusBadRequest, nil, fmt.Sprintf(format, args...))
	e.statusSent = true
	return e
}

// engineFailure is for a valid request that makes an engine fail.
func engineFailure(format string, args ...any) error {
	return newAPIError(http.StatusInternalServerError, nil, fmt.Sprintf(format, args...))
}

// lateFailure is vLLM's answer to an internal error.
func lateFailure() error {
	e := newAPIError(http.StatusInternalServerError, nil, "Internal server error")
	e.late = true
	return e
}

func unknownModel(model string) error {
	return newAPIError(http.StatusNotFound, "model", fmt.Sprintf("The model `%s` does not exist.", model))
}

// These two come from vLLM's middleware and router, not from its handlers, and
// have other forms.
func unauthorized() error {
	return &apiError{code: http.StatusUnauthorized, message: "Unauthorized", body: map[string]any{"error": "Unauthorized"}}
}

func notFound(method, path string) error {
	return &apiError{code: http.StatusNotFound, message: method + " " + path + " not found", body: map[string]any{"detail": "Not Found"}}
}
