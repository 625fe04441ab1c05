package epdhandler

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// identify returns the uuids by which engines know the media items of a request: the
// client's own if it is trusted, else what the media, the options that decide how they
// are processed, and the salt make. Whoever finds
// other media with the same uuid gets, or replaces, the embedding of somebody else,
// so it is a cryptographic hash. Equal media have equal uuids.
func (x *exchange) identify() []string {
	items := x.body.Items
	salt := []byte(x.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceAll(x.h.UUIDSalt, ""))
	uuids := make([]string, len(items))
	each(len(items), runtime.GOMAXPROCS(0), func(i int) bool {
		if uuids[i] = items[i].UUID; uuids[i] == "" {
			h := hmac.New(sha256.New, salt)
			for _, options := range []body.Field{body.MMProcessorKwargs, body.MediaIOKwargs} {
				v := x.body.Value(options)
				_, _ = fmt.Fprintf(h, "%d:%s", len(v), v)
			}
			x.body.WriteContent(h, items[i])
			uuids[i] = hex.EncodeToString(h.Sum(nil))
		}
		return true
	})
	return uuids
}

// names are what gives the media items uuids that have none of the client.
func (x *exchange) names() []body.Patch {
	var patches []body.Patch
	for i, item := range x.body.Items {
		if item.UUID == "" {
			patches = append(patches, item.Name(x.quotedUUID(i)))
		}
	}
	return patches
}

// withNames is the client's body, in which media items have uuids if engines get to know
// them.
func (x *exchange) withNames() *body.Body {
	if x.named != nil {
		return x.named
	}
	return x.body
}

// quotedUUID is the uuid of an item as JSON: the client's own exactly as written.
func (x *exchange) quotedUUID(i int) []byte {
	if item := x.body.Items[i]; item.UUID != "" {
		return x.body.UUID(item)
	}
	text, _ := json.Marshal(x.uuids[i]) // a string
	return text
}
