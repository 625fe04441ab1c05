// Package integration tests Caddy with epd_proxy in a process of its own, over real
// sockets and TLS, with the engines of package fakevllm, which reject what vLLM would
// not accept.
package integration
