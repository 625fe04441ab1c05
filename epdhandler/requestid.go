package epdhandler

import (
	"net/http"

	"github.com/google/uuid"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
)

// requestID returns the client's x-request-id if it is valid, otherwise a new
// one.
func requestID(h http.Header) string {
	if ids := h["X-Request-Id"]; len(ids) == 1 && validID(ids[0]) {
		return ids[0]
	}
	return uuid.NewString()
}

// validID reports whether an id has 1 to 128 characters of A-Za-z0-9._-
func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return 0 < len(id) && len(id) <= 128
}

// engineID returns the x-request-id for engines, which is unique whatever clients send and however
// many proxies there are. vLLM before 0.14, or with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION,
// confuses requests with the same id, or crashes; and a prefill is still in use there after it has
// been answered.
func engineID(id string) string { return id + "-" + engine.RandomHex(12) }
