// Package epdhandler is a Caddy handler that serves multimodal models with Encode-Prefill-Decode
// disaggregation: it sends the media of a chat completions request to a pool of encoders, runs the
// prefill on a second pool if there is one, and streams the answer of a third.
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
// This package has the module's configuration (handler.go, defaults.go, validate.go, caddyfile.go),
// its life cycle (lifecycle.go), the routes (routes.go, receive.go), and the pipeline: pipeline.go
// calls the stages in encode.go, prefill.go and decode.go, and attempts.go decides whether there is
// another attempt. The packages below internal are its parts; see docs/architecture.md.
package epdhandler
