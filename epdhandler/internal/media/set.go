// Package media finds the media items of a request, and makes the requests that have them encoded and
// the bodies that refer to the embeddings. It knows how vLLM reads content parts and what its encoders
// answer, but it must not know instances, connections, or what is done when a request fails.
//
// A request takes these steps, each of which makes a value of the one before:
//
//	b, set, err := media.ParseChat(bytes, 128, false) // *Set: the items
//	plan := set.Plan(options)                         // *Plan: which of them are encoded together
//	request, ids := plan.Request(0, "")               // for an encoder
//	answer, err := plan.Read(0, bytes, ids)           // Answer: what the encoder says
//	encoded := plan.Encoded(answers)                  // Encoded: what consumers get
//
// Each API has a parser in a file of its own: chat.go. The other files are for all of them.
package media

import (
	"errors"
	"fmt"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Set is the media of a request, whose bytes must not change while it is in use. A nil Set has no items.
type Set struct {
	body    *body.Body
	items   []Item
	trusted bool // the client is
}

// ParseText indexes a request that can have no media, such as for text. Errors are of type *[Error].
func ParseText(b []byte) (*body.Body, *Set, error) {
	set := new(Set)
	parsed, err := set.parse(b)
	return parsed, set, err
}

func (s *Set) parse(b []byte, hooks ...body.Hook) (parsed *body.Body, err error) {
	parsed, err = body.Parse(b, hooks...)
	if e, ok := errors.AsType[*body.Error](err); ok {
		return nil, invalid("", "%s", e.Message)
	}
	s.body = parsed
	return parsed, err
}

// Items are the media items in document order.
func (s *Set) Items() []Item {
	if s == nil {
		return nil
	}
	return s.items
}

// Item is a media item: one part of a message's content that an encoder turns into embeddings.
type Item struct {
	Message, Part int        // position in messages, and in that message's content
	Range         body.Range // of the whole part, with the braces
	Kind          string     // the member that carries the media, such as "image_url"
	UUID          string     // the client's, unescaped; empty if there is none, or the client is not trusted
	spans
	typ  body.Range // of the value of the type; empty if there is none
	uuid body.Range // of the value of a trusted client's uuid, also if that is no string
}

// Path is where the item stands in the request, such as "messages[0].content[2]".
func (i Item) Path() string { return partPath(i.Message, i.Part) }

func partPath(message, part int) string {
	return fmt.Sprintf("messages[%d].content[%d]", message, part)
}

// Modality is [Image], [Audio] or [Video].
func (i Item) Modality() string {
	_, modality := carrier(i.Kind)
	return modality
}

// Size is how many bytes of the request the part takes.
func (i Item) Size() int { return i.Range.End - i.Range.Start }

// An Error says why a request is not accepted, in words that are fit for the client: without content.
type Error struct {
	Code    string // "media_url" or "media_source" if it is about where media come from, else "invalid_body"
	Message string
	Param   string // the path of the offending value, such as "messages[0].content[2].image_url"; may be empty
}

func (e *Error) Error() string { return e.Message }

func invalid(param, format string, args ...any) *Error {
	return &Error{Code: "invalid_body", Message: fmt.Sprintf(format, args...), Param: param}
}
