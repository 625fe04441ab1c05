package media

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Options says how the media of a request are to be encoded.
type Options struct {
	References bool   // consumers are to get references to the embeddings instead of media
	Pushed     bool   // encoders push the embeddings to a consumer
	Salt       string // goes into the uuids of media
	BatchSize  int    // how many images an encoder may get in one request
	Encoders   int    // how many instances the images are spread over; 0 if that is not known
}

// A Plan says which media items are encoded, and which of them together: with uuids, equal ones once;
// images in batches, others alone.
type Plan struct {
	Batches    [][]int // the items that go to an encoder in one request, by their positions
	set        *Set
	references bool
	uuids      []string // of the items, nil if engines do not get to know them
	original   []int    // the item that each one is equal to: the first of its like
}

// Plan makes the plan.
func (s *Set) Plan(options Options) *Plan {
	p := &Plan{set: s, references: options.References, original: make([]int, len(s.items))}
	if options.References || options.Pushed {
		p.uuids = s.identify(options.Salt)
	}
	p.findEqual(options.Pushed)
	p.divide(s.batchSize(options))
	return p
}

// findEqual finds out which items are equal. If embeddings are pushed, none are: each occurrence
// has a transfer. Items that have a uuid of the client are not equal to others: it may be wrong.
func (p *Plan) findEqual(pushed bool) {
	seen := make(map[string]int)
	for i, item := range p.set.items {
		p.original[i] = i
		if p.uuids == nil || pushed || item.UUID != "" {
			continue
		}
		if first, ok := seen[p.uuids[i]]; ok {
			p.original[i] = first
		} else {
			seen[p.uuids[i]] = i
		}
	}
}

func (p *Plan) divide(size int) {
	var images []int
	for i, item := range p.set.items {
		switch {
		case p.original[i] != i:
		case item.Kind != imageURL:
			p.Batches = append(p.Batches, []int{i})
		default:
			if images = append(images, i); len(images) == size {
				p.Batches = append(p.Batches, images)
				images = nil
			}
		}
	}
	if len(images) > 0 {
		p.Batches = append(p.Batches, images)
	}
}

// batchSize spreads the images of a request over the encoders.
func (s *Set) batchSize(options Options) int {
	images := 0
	for _, item := range s.items {
		if item.Kind == imageURL {
			images++
		}
	}
	encoders := max(1, options.Encoders)
	return max(1, min(options.BatchSize, (images+encoders-1)/encoders))
}

// identify returns the uuids by which engines know the media items: the client's own if it is trusted,
// else a hash of the media, the options that decide how they are processed, and the salt. The hash must be
// cryptographic: who finds other media with the same uuid gets, or replaces, somebody else's embedding.
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

// hash hashes fields. The length of each comes first, so that no two lists of fields look the same.
func (s *Set) hash(i Item, salt string) string {
	h := hmac.New(sha256.New, []byte(salt))
	for _, options := range []string{body.MMProcessorKwargs, body.MediaIOKwargs} {
		v := s.body.Value(options)
		if !body.Given(v) || string(v) == "{}" {
			v = nil // which is the same
		}
		writeLength(h, len(v))
		_, _ = h.Write(v)
	}
	s.writeMedia(h, i)
	return hex.EncodeToString(h.Sum(nil))
}

// writeMedia writes all that vLLM reads of the media of an item, as fields: the kind, the format of
// audio, and the URL or data, unescaped. Two items that write the same are the same media.
func (s *Set) writeMedia(w io.Writer, i Item) {
	writeString(w, []byte(i.Kind))
	if i.Kind == inputAudio {
		writeString(w, formatText(s.body.Slice(i.format)))
	}
	writeString(w, s.body.Slice(i.payload))
}

// writeString writes the inside of a string, unescaped, as a field.
func writeString(w io.Writer, raw []byte) {
	length := 0
	for piece := range body.Unescaped(raw) {
		length += len(piece)
	}
	writeLength(w, length)
	for piece := range body.Unescaped(raw) {
		_, _ = w.Write(piece)
	}
}

func writeLength(w io.Writer, n int) {
	_, _ = w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}
