// Package media finds the media items of a request, and makes the requests that have them
// encoded and the bodies that refer to the embeddings. It knows how vLLM reads content parts
// and what its encoders answer, but it must not know instances, connections, or what is done
// when a request fails.
//
// A request takes these steps, each of which makes a value of the one before:
//
//	b, set, err := media.ParseChat(bytes, 128, false) // *Set: the items
//	plan := set.Plan(options)                         // *Plan: which of them are encoded together
//	request, ids := plan.Request(0, "")               // for an encoder
//	answer, err := plan.Read(0, bytes, ids)           // Answer: what the encoder says
//	encoded := plan.Encoded(answers)                  // Encoded: what consumers get
//
// What APIs have in common is in all files but one for each API, which has its parser: chat.go.
package media
