package epdhandler

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Engines since vLLM 0.30.0 take, instead of media that have been encoded, the shape
// that the encoder has told of them and the uuid under which it has encoded them.

// embedKinds are what references are called.
var embedKinds = map[string]string{
	"image_url": "image_embeds", "audio_url": "audio_embeds", "input_audio": "audio_embeds", "video_url": "video_embeds",
}

// soundOption makes of a video two media for an engine: the video and its sound.
const soundOption = "use_audio_in_video"

// encoded is what is known of a media item after it has been encoded.
type encoded struct {
	told      bool       // by an entry of the encoder's
	reference []byte     // the members that stand in for the media; nil if nothing can
	transfers []transfer // to the consumer
}

// A transfer is one embedding on its way to the consumer.
type transfer struct {
	Hash json.RawMessage `json:"mm_hash"` // the encoder's name for it
	ID   string          `json:"transfer_id"`
}

// refer returns the client's body with references, if encoders have told what each item needs.
// Media that stay as they are get the uuid by which they were encoded, or engines would not find
// that. No request has both: an engine takes no references beside media of one modality, and a model
// whose processor takes all media at once none at all (seen with Qwen2.5-Omni of vLLM 0.32.0).
func (x *exchange) refer(known []encoded) *body.Body {
	x.referred = x.h.References && !x.raw
	for i := range x.body.Items {
		x.referred = x.referred && known[x.original[i]].reference != nil
	}
	patches := make([]body.Patch, 0, 2*len(x.body.Items))
	for i, item := range x.body.Items {
		if x.referred {
			patches = append(patches, item.Refer(embedKinds[item.Kind], known[x.original[i]].reference)...)
		}
		patches = x.addUUID(patches, i)
	}
	return x.body.Patched(patches)
}

// withSound reports whether an item is such a video.
func (x *exchange) withSound(item body.Item) bool {
	return item.Kind == "video_url" && string(x.body.Option(body.MMProcessorKwargs, soundOption)) == "true"
}

// told returns what an encoder tells of the items of a batch, and adds which entries the
// transfers to the consumer are for: there is an id for each of the positions.
func (x *exchange) told(b batch, entries []body.Entry, ids []string) ([]encoded, error) {
	all := make([]about, 0, len(entries))
	for _, e := range entries {
		a, err := x.about(b, e, len(entries))
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	if len(b) == 1 {
		return []encoded{x.toldAlone(x.body.Items[b[0]], all, ids)}, nil
	}
	items := make([]encoded, len(b))
	for _, a := range all {
		for _, n := range a.positions {
			if n >= len(b) {
				return nil, fmt.Errorf("item_indices of ec_transfer_params has %d, of %d items", n, len(b))
			}
			if items[n].told {
				return nil, fmt.Errorf("item %d has more than one entry in ec_transfer_params", n)
			}
			items[n] = encoded{true, a.reference(x.body.Items[b[n]].Kind), a.transfers(ids, n)}
		}
	}
	return items, nil
}

// toldAlone returns what an encoder tells of the only item of a batch. It may be more than
// one thing for the engine, such as a video and its sound, which vLLM 0.33 can be referred to.
func (x *exchange) toldAlone(item body.Item, all []about, ids []string) encoded {
	e := encoded{told: len(all) > 0}
	for at := range ids {
		for _, a := range all {
			e.transfers = append(e.transfers, a.transfers(ids, at)...)
		}
	}
	switch sound := x.withSound(item); {
	case !sound && len(all) == 1:
		e.reference = all[0].reference(item.Kind)
	case sound && len(all) == 2:
		slices.SortFunc(all, func(a, b about) int { return slices.Compare(a.positions, b.positions) })
		video, audio := all[0].reference("video_url"), all[1].reference("audio_url")
		if video != nil && audio != nil && all[0].is("video", 0) && all[1].is("audio", 1) {
			e.reference = slices.Concat(video, []byte(","), audio)
		}
	}
	return e
}

// about is what an entry of ec_transfer_params says.
type about struct {
	hash      []byte // the encoder's name for the embedding, with quotes
	positions []int  // of items in the batch
	modality  []byte // as JSON; nil from engines before 0.33
	shape     []byte // what a reference has to tell; nil if there is nothing
}

// about reads an entry. Engines that do not say which items it is about have the uuid of
// one as its name, or it is the only one.
func (x *exchange) about(b batch, e body.Entry, entries int) (about, error) {
	members, err := body.Entries(e.Value)
	if err != nil {
		return about{}, errors.New("an entry of ec_transfer_params is no object")
	}
	a := about{hash: e.Name, modality: body.Find(members, "modality"), shape: flatten(body.Find(members, "metadata"))}
	if indices := body.Find(members, "item_indices"); indices != nil && !body.IsNull(indices) {
		if err := json.Unmarshal(indices, &a.positions); err != nil || slices.ContainsFunc(a.positions, func(n int) bool { return n < 0 }) {
			return a, errors.New("item_indices of ec_transfer_params is no list of positions")
		}
		return a, nil
	}
	for n, i := range b {
		if body.IsString(e.Name, x.uuids[i]) {
			a.positions = append(a.positions, n)
			return a, nil
		}
	}
	if len(b) == 1 && entries == 1 {
		a.positions = []int{0}
	}
	if len(b) > 1 {
		return a, errors.New("ec_transfer_params does not say which entry is for which item")
	}
	return a, nil
}

// is reports whether an entry is about the one thing of this modality at this position.
func (a about) is(modality string, at int) bool {
	return body.IsString(a.modality, modality) && slices.Equal(a.positions, []int{at})
}

// transfers returns the one to the consumer that an entry tells of a position, if any.
func (a about) transfers(ids []string, at int) []transfer {
	if at >= len(ids) || !slices.Contains(a.positions, at) {
		return nil
	}
	return []transfer{{a.hash, ids[at]}}
}

// timings are what models call the times of a video's frames (vLLM 0.33): without any of
// them a reference would stand for a video of another speed.
var timings = []string{"timestamps", "second_per_grid_ts"}

// reference returns the member that stands in for media of a kind, nil if what is told does not suffice.
func (a about) reference(kind string) []byte {
	embeds := embedKinds[kind]
	modality, _, _ := strings.Cut(embeds, "_")
	told, _ := body.Entries(a.shape) // an error: there is none
	has := func(name string) bool { return body.Find(told, name) != nil }
	switch {
	case a.shape == nil, a.modality != nil && !body.IsString(a.modality, modality):
		return nil
	case modality == "video" && !(has("video_grid_thw") && slices.ContainsFunc(timings, has)):
		return nil
	}
	return fmt.Appendf(nil, `"%s":%s`, embeds, a.shape)
}

// flatten returns an encoder's metadata as a reference has them: lists of lists become
// lists. It returns nil if there are none, or anything in them is no number.
func flatten(metadata []byte) []byte {
	members, err := body.Entries(metadata)
	if err != nil || len(members) == 0 {
		return nil
	}
	for n, m := range members {
		d := json.NewDecoder(bytes.NewReader(m.Value))
		d.UseNumber()
		var value any
		if d.Decode(&value) != nil {
			return nil
		}
		if value = flattened(value); value == nil {
			return nil
		}
		members[n].Value, _ = json.Marshal(value) // numbers
	}
	return object(members)
}

// flattened returns a number as it is, and the numbers of a list, or of its lists, in one.
func flattened(value any) any {
	list, ok := value.([]any)
	if !ok {
		return number(value)
	}
	numbers := []any{}
	for _, v := range list {
		inner, ok := v.([]any)
		if !ok {
			inner = []any{v}
		}
		for _, n := range inner {
			if number(n) == nil {
				return nil
			}
			numbers = append(numbers, n)
		}
	}
	return numbers
}

func number(value any) any {
	if _, ok := value.(json.Number); !ok {
		return nil
	}
	return value
}
