package media

// Options says how the media of a request are to be encoded.
type Options struct {
	// References is whether consumers are to get references to the embeddings instead of media.
	References bool

	// Pushed is whether encoders push the embeddings to a consumer.
	Pushed bool

	// Salt goes into the uuids of media.
	Salt string

	// BatchSize is how many images an encoder may get in one request.
	BatchSize int

	// Encoders is how many instances the images are spread over; 0 if that is not known.
	Encoders int
}

// A Batch is the media items that go to an encoder in one request, by their positions.
type Batch []int

// A Plan says which media items are encoded, and which of them together: with uuids, equal
// ones once; images in batches, others alone.
type Plan struct {
	Batches []Batch

	set        *Set
	references bool
	uuids      []string // of the items, nil if engines do not get to know them
	original   []int    // the item that each one is equal to: the first of its like
}

// Plan makes the plan.
func (s *Set) Plan(options Options) *Plan {
	p := &Plan{set: s, references: options.References, original: make([]int, len(s.Items()))}
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
	for i, item := range p.set.Items() {
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

// divide divides the items that are encoded into batches.
func (p *Plan) divide(size int) {
	var images Batch
	for i, item := range p.set.Items() {
		switch {
		case p.original[i] != i:
		case item.Kind != imageURL:
			p.Batches = append(p.Batches, Batch{i})
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
	for _, item := range s.Items() {
		if item.Kind == imageURL {
			images++
		}
	}
	encoders := max(1, options.Encoders)
	return max(1, min(options.BatchSize, (images+encoders-1)/encoders))
}
