package fakevllm

import (
	"net/http"
	"slices"
)

// group is one embedding of a modern encode request: an item, and all positions
// at which it occurs in the request.
type group struct {
	item    item
	indices []int
}

// groups are in the order in which their items appear first.
func groups(items []item) []group {
	var all []group
	for n, i := range items {
		at := slices.IndexFunc(all, func(g group) bool { return g.item.hash == i.hash })
		if at < 0 {
			at = len(all)
			all = append(all, group{item: i})
		}
		all[at].indices = append(all[at].indices, n)
	}
	return all
}

// embedded is the result of encoding a group.
type embedded struct {
	group
	name  string   // the entry's key
	entry transfer // of the answer
	ids   []string // of the transfers to the consumer, if one was named
}

// encodeBatch puts the embeddings of several items into the cluster.
func (x *exchange) encodeBatch() (*answer, error) {
	var all []embedded
	entries := make(map[string]transfer)
	for _, g := range groups(x.prompt.items) {
		e := x.embed(g)
		all = append(all, e)
		entries[e.name] = e.entry
	}
	if !x.forgets {
		if err := x.engine.cluster.store(all); err != nil {
			return nil, err
		}
	}
	c := x.completion("length", "")
	c.ECTransferParams = entries
	return jsonAnswer(http.StatusOK, marshal(c)), nil
}

func (x *exchange) embed(g group) embedded {
	o := x.engine.options
	e := embedded{group: g, name: g.item.hash, entry: transfer{Metadata: o.shape(g.item), ItemIndices: g.indices}}
	if o.NoItemIndices {
		e.entry.ItemIndices = nil
		if uuid, ok := stringOf(g.item.uuid); ok {
			e.name = uuid
		}
	}
	if o.Modalities {
		e.entry.Modality = g.item.modality
	}
	if o.Handles {
		e.entry.handle = newHandle(x.engine.port)
	}
	for _, n := range g.indices {
		if len(x.target.ids) > 0 {
			e.ids = append(e.ids, x.target.ids[n])
		}
	}
	return e
}

// checkBatch requires a single message of the user that contains only images, or only
// one other item.
func (x *exchange) checkBatch() error {
	p, most := x.prompt, x.engine.options.MaxBatch
	if len(p.roles) != 1 || p.roles[0] != "user" {
		return badRequest("an encode request has exactly one message, of the user, got messages of %q", p.roles)
	}
	if len(p.texts) > 0 || len(p.items) == 0 || slices.ContainsFunc(p.items, func(i item) bool { return i.ready }) {
		return badRequest("the content parts of an encode request must be media to encode")
	}
	isImage := func(i item) bool { return i.modality == "image" }
	if n := len(p.items); n > 1 && !(n == 2 && p.items[0].part == p.items[1].part) && slices.ContainsFunc(p.items, not(isImage)) {
		return badRequest("only images may share an encode request, got %d items that are not all images", n)
	}
	if n := len(p.items); most > 0 && n > most {
		return badRequest("an encode request has at most %d items here, got %d", most, n)
	}
	return nil
}
