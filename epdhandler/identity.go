package epdhandler

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"runtime"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
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
				if body.IsNull(v) || string(v) == "{}" {
					v = nil // which is the same
				}
				body.WriteField(h, v)
			}
			x.body.WriteMedia(h, items[i])
			uuids[i] = hex.EncodeToString(h.Sum(nil))
		}
		return true
	})
	return uuids
}

// withUUIDs is the client's body, whose media items have the uuids by which they were encoded.
func (x *exchange) withUUIDs() *body.Body {
	var patches []body.Patch
	for i := range x.body.Items {
		patches = x.addUUID(patches, i)
	}
	return x.body.Patched(patches)
}

// addUUID appends the patch that gives an item its uuid, unless it has one of the client.
func (x *exchange) addUUID(patches []body.Patch, i int) []body.Patch {
	if item := x.body.Items[i]; item.UUID == "" {
		patches = append(patches, item.SetUUID(x.quotedUUID(i)))
	}
	return patches
}

// quotedUUID is the uuid of an item as JSON: the client's own exactly as written. It is nil if
// there is none.
func (x *exchange) quotedUUID(i int) []byte {
	switch item := x.body.Items[i]; {
	case item.UUID != "":
		return x.body.UUID(item)
	case x.uuids == nil:
		return nil
	}
	text, _ := json.Marshal(x.uuids[i]) // a string
	return text
}
