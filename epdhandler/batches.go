package epdhandler

// batch is the media items that go to an encoder in one request, by their positions.
type batch []int

// plan decides which items are encoded, and which of them together: with references,
// equal ones once; images in batches, others alone.
func (x *exchange) plan() {
	items := x.body.Items
	x.original = make([]int, len(items))
	var images batch
	flush := func() {
		if len(images) > 0 {
			x.batches = append(x.batches, images)
		}
		images = nil
	}
	if x.h.References || x.h.consumers != nil {
		x.uuids = x.identify()
	}
	seen := make(map[string]int)
	size := x.batchSize()
	for i, item := range items {
		x.original[i] = i
		if x.uuids != nil && x.h.consumers == nil && item.UUID == "" { // each occurrence has a transfer; a client may be wrong
			if first, ok := seen[x.uuids[i]]; ok {
				x.original[i] = first
				continue
			}
			seen[x.uuids[i]] = i
		}
		if item.Kind != "image_url" {
			x.batches = append(x.batches, batch{i})
			continue
		}
		if images = append(images, i); len(images) == size {
			flush()
		}
	}
	flush()
	for range x.batches {
		a := x.attempts(x.h.encode)
		if len(x.encoding) > 0 {
			a.turn = x.encoding[0].turn // a request's, not an item's
		}
		x.encoding = append(x.encoding, a)
	}
}

// batchSize spreads the images of a request over the encoders.
func (x *exchange) batchSize() int {
	images := 0
	for _, item := range x.body.Items {
		if item.Kind == "image_url" {
			images++
		}
	}
	encoders := max(1, len(x.h.encode.handler.Upstreams)) // none are known if the pool is dynamic
	return max(1, min(x.h.EncodeBatch, (images+encoders-1)/encoders))
}

// content appends the content parts of a batch, as an encoder takes them.
func (x *exchange) content(parts [][]byte, b batch) [][]byte {
	for n, i := range b {
		if n > 0 {
			parts = append(parts, []byte(","))
		}
		parts = x.body.AppendAlone(parts, x.body.Items[i], x.quotedUUID(i))
	}
	return parts
}
