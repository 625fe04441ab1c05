package media

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// An Answer is what an encoder says of a batch.
type Answer struct {
	entries body.Members // of ec_transfer_params
	items   []embedding  // of the batch; nil if engines do not get to know uuids
}

// Read reads an encoder's answer to a [Plan.Request] with these ids.
func (p *Plan) Read(batch int, answer []byte, ids []string) (Answer, error) {
	b, err := body.Parse(answer)
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	if v := b.Value(body.ECTransferParams); body.Given(v) && !body.IsObject(v) {
		return Answer{}, errors.New("ec_transfer_params is no object")
	}
	a := Answer{entries: b.Members(body.ECTransferParams)}
	if p.uuids != nil {
		a.items, err = p.embeddings(p.Batches[batch], a.entries, ids)
	}
	return a, err
}

// embedding is what an encoder has told of a media item. Engines since vLLM 0.30.0 take, instead of the
// media, the shape that the encoder has told of them and the uuid under which it has encoded them.
type embedding struct {
	told      bool       // there is an entry about it, in a batch
	reference []byte     // the members that replace the media; nil if nothing can
	transfers []transfer // to the consumer
}

// embeddings returns what an encoder tells of the items of a batch. Each position has a transfer in ids.
func (p *Plan) embeddings(b []int, entries body.Members, ids []string) ([]embedding, error) {
	all := make([]entry, 0, len(entries))
	for _, raw := range entries {
		e, err := p.entry(b, raw, len(entries))
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	if len(b) == 1 {
		return []embedding{p.alone(p.set.items[b[0]], all, ids)}, nil
	}
	items := make([]embedding, len(b))
	for _, e := range all {
		for _, n := range e.positions {
			if n >= len(b) {
				return nil, fmt.Errorf("item_indices of ec_transfer_params has %d, of %d items", n, len(b))
			}
			if items[n].told {
				return nil, fmt.Errorf("item %d has more than one entry in ec_transfer_params", n)
			}
			items[n] = embedding{true, e.reference(p.set.items[b[n]].Modality()), e.transfers(ids, n)}
		}
	}
	return items, nil
}

// alone returns what an encoder tells of the only item of a batch. It may be more than one thing
// for the engine: a video and its sound are two, to which references can be made since vLLM 0.33.
func (p *Plan) alone(item Item, all []entry, ids []string) embedding {
	var known embedding
	for at := range ids {
		for _, e := range all {
			known.transfers = append(known.transfers, e.transfers(ids, at)...)
		}
	}
	switch sound := p.set.withSound(item); {
	case !sound && len(all) == 1:
		known.reference = all[0].reference(item.Modality())
	case sound && len(all) == 2:
		slices.SortFunc(all, func(a, b entry) int { return slices.Compare(a.positions, b.positions) })
		video, audio := all[0].reference(Video), all[1].reference(Audio)
		if video != nil && audio != nil && all[0].is(Video, 0) && all[1].is(Audio, 1) {
			known.reference = slices.Concat(video, []byte(","), audio)
		}
	}
	return known
}

// entry is what an entry of ec_transfer_params says.
type entry struct {
	hash      []byte // the encoder's name for the embedding, with quotes
	positions []int  // of items in the batch
	modality  []byte // as JSON; nil from engines before 0.33
	shape     body.Members
}

// entry reads an entry. Engines that do not say which items it is about use the uuid of the item
// as its name, or it is the only one.
func (p *Plan) entry(b []int, raw body.Entry, entries int) (entry, error) {
	members, err := body.MembersOf(raw.Value)
	if err != nil {
		return entry{}, errors.New("an entry of ec_transfer_params is no object")
	}
	e := entry{hash: raw.Name, modality: members.Value("modality"), shape: flatten(members.Value("metadata"))}
	if indices := members.Value("item_indices"); body.Given(indices) {
		if err := json.Unmarshal(indices, &e.positions); err != nil || slices.ContainsFunc(e.positions, func(n int) bool { return n < 0 }) {
			return e, errors.New("item_indices of ec_transfer_params is no list of positions")
		}
		return e, nil
	}
	n := slices.IndexFunc(b, func(i int) bool { return body.IsString(raw.Name, p.uuids[i]) })
	switch {
	case n >= 0:
		e.positions = []int{n}
	case len(b) > 1:
		return e, errors.New("ec_transfer_params does not say which entry is for which item")
	case entries == 1:
		e.positions = []int{0}
	}
	return e, nil
}

// is reports whether an entry is about the one thing of this modality at this position.
func (e entry) is(modality string, at int) bool {
	return body.IsString(e.modality, modality) && slices.Equal(e.positions, []int{at})
}

// transfers returns the one to the consumer that an entry tells of a position, if any.
func (e entry) transfers(ids []string, at int) []transfer {
	if at >= len(ids) || !slices.Contains(e.positions, at) {
		return nil
	}
	return []transfer{{e.hash, ids[at]}}
}

// reference returns the member that replaces media of a modality, nil if the entry says too little.
func (e entry) reference(modality string) []byte {
	has := func(name string) bool { return e.shape.Value(name) != nil }
	switch {
	case e.shape == nil, e.modality != nil && !body.IsString(e.modality, modality):
		return nil
	// models have two names for the times of the frames (vLLM 0.33), without which a reference
	// would be to a video of another speed
	case modality == Video && !(has("video_grid_thw") && (has("timestamps") || has("second_per_grid_ts"))):
		return nil
	}
	return fmt.Appendf(nil, `"%s":%s`, embeds(modality), object(e.shape))
}

// flatten returns an encoder's metadata as a reference has them: lists of lists become lists. It returns
// nil if there are none, or anything in them is no number.
func flatten(metadata []byte) body.Members {
	members, _ := body.MembersOf(metadata) // an error: there are none
	for n, m := range members {
		value := string(m.Value)
		depth, deepest := 0, 0
		for _, c := range value {
			switch {
			case c == '[':
				depth++
				deepest = max(depth, deepest)
			case c == ']':
				depth--
			case !strings.ContainsRune("0123456789+-.eE, \t\r\n", c):
				return nil
			}
		}
		if deepest > 2 {
			return nil
		}
		if deepest > 0 {
			numbers := strings.FieldsFunc(value, func(c rune) bool { return strings.ContainsRune("[], \t\r\n", c) })
			members[n].Value = []byte("[" + strings.Join(numbers, ",") + "]")
		}
	}
	return members
}
