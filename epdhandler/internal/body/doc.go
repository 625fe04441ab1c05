// Package body indexes a JSON body where it lies: it checks the bytes once and remembers where
// the top-level members stand, so that every request to an engine can be assembled from slices of
// the client's own bytes and a few small new pieces. It must not know what the values mean: who
// looks into one gives [Parse] a [Hook].
//
// A body that the index accepts is valid JSON (RFC 8259) in valid UTF-8, nested
// at most [MaxDepth] deep, with no member given twice in the objects that are
// looked into: two parsers must never read two different requests out of
// the same bytes. Everything that nobody looks into is left exactly
// as the client wrote it.
//
//	b, err := body.Parse(bytes)
//	prefill := b.Rewrite(body.Set(body.Stream, "false"), body.Remove(body.StreamOptions))
//	http.NewRequest("POST", url, prefill.Reader())
package body
