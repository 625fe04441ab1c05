// Package stream passes the answer of an engine on to the client, as server-sent events or
// whole, and limits how long the engine may be silent. It must not know stages, instances,
// retries, or what the proxy does when an answer fails.
package stream
