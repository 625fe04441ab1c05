// Package integration tests the real Caddy with epd_proxy, as a process of its
// own, over real sockets and TLS, against the engines of package fakevllm, which
// enforce what vLLM expects.
package integration
