// Package epdhandler is a Caddy handler that serves multimodal models with
// Encode-Prefill-Decode disaggregation: it sends the media of a chat completions
// request to a pool of encoders, runs the prefill on a second pool if there is
// one, and streams the answer of a third.
//
// Importing the package registers the module http.handlers.epd_proxy and the
// Caddyfile directive epd_proxy:
//
//	api.example.com {
//		epd_proxy {
//			encode  e1:8001 e2:8001
//			prefill disable
//			decode  pd1:8003 pd2:8003
//		}
//	}
//
// A request flows one way: its body is read and indexed once (request.go, package
// body), then it passes the stages (pipeline.go: encode.go, prefill.go, decode.go).
// Every stage reaches its pool, a reverse_proxy handler (pool.go), through one door
// (subrequest.go), and what fails is tried elsewhere in one place (attempts.go).
//
// What operators see: the access log (report.go), metrics (metrics.go, gauges.go), traces
// (trace.go), and the status on Caddy's admin endpoint (admin.go, status.go).
//
// What is about the instances themselves asks each of them, past the load balancing
// (direct.go): profiling (profile.go, admin.go) and the command epd-check (check.go).
// The command epd-proxy (proxycommand.go) serves without a configuration file.
package epdhandler
