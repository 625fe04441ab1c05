package media

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// identify returns the uuids by which engines know the media items: the client's own if it
// is trusted, else a hash of the media, the options that decide how they are processed, and the
// salt. Equal media have equal uuids. The hash must be a cryptographic one: whoever finds other
// media with the same uuid gets, or replaces, the embedding of somebody else.
func (s *Set) identify(salt string) []string {
	uuids := make([]string, len(s.items))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, item := range s.items {
		if uuids[i] = item.UUID; item.UUID != "" {
			continue
		}
		group.Go(func() error {
			uuids[i] = s.hash(item, salt)
			return nil
		})
	}
	_ = group.Wait() // no function fails
	return uuids
}

func (s *Set) hash(i Item, salt string) string {
	h := hmac.New(sha256.New, []byte(salt))
	for _, options := range []body.Field{body.MMProcessorKwargs, body.MediaIOKwargs} {
		v := s.body.Value(options)
		if body.IsNull(v) || string(v) == "{}" {
			v = nil // which is the same
		}
		writeField(h, v)
	}
	s.writeMedia(h, i)
	return hex.EncodeToString(h.Sum(nil))
}

// quotedUUID is the uuid of an item as JSON: the client's own exactly as written. It is nil if
// engines do not get to know one.
func (p *Plan) quotedUUID(i int) []byte {
	switch item := p.set.items[i]; {
	case item.UUID != "":
		return p.set.body.Slice(item.uuid)
	case p.uuids == nil:
		return nil
	}
	text, _ := json.Marshal(p.uuids[i]) // a string
	return text
}

// addUUID appends the patch that gives an item its uuid, unless it has one of the client.
func (p *Plan) addUUID(patches []body.Patch, i int) []body.Patch {
	if item := p.set.items[i]; item.UUID == "" {
		patches = append(patches, item.setUUID(p.quotedUUID(i)))
	}
	return patches
}

// withUUIDs is the client's body with the uuids by which the media are encoded.
func (p *Plan) withUUIDs() *body.Body {
	var patches []body.Patch
	for i := range p.set.items {
		patches = p.addUUID(patches, i)
	}
	return p.set.body.Patched(patches)
}
