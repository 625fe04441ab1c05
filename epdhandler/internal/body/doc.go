// Package body indexes the JSON body of a completion request where it lies:
// it checks the bytes once and remembers where the parts that matter stand,
// so that every request to an engine can be assembled from slices of the
// client's own bytes and a few small new pieces.
//
// A body that the index accepts is valid JSON (RFC 8259) in valid UTF-8, nested
// at most [MaxDepth] deep, with no member given twice in the objects that the
// proxy looks into: two parsers must never read two different requests out of
// the same bytes. Everything that the index does not look into is left exactly
// as the client wrote it.
//
//	b, err := body.ParseChat(bytes, 128, false)
//	for _, item := range b.Items { … }            // each media item, in document order
//	prefill := b.Rewrite(body.Set(body.Stream, "false"), body.Remove(body.StreamOptions))
//	http.NewRequest("POST", url, prefill.Reader())
package body
