package epdhandler

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// Engines since September 2026 take, instead of media that have been encoded, the shape
// that the encoder has told of them and the uuid under which it has encoded them.

// embedKinds are what references are called.
var embedKinds = map[string]string{
	"image_url": "image_embeds", "audio_url": "audio_embeds", "input_audio": "audio_embeds", "video_url": "video_embeds",
}

// encoded is what is known of a media item after it has been encoded.
type encoded struct {
	hash     []byte // the encoder's name for it, with quotes; nil if it has told none
	shape    []byte // as a reference has it; nil if there can be none
	transfer string // the id of the transfer to the consumer; empty if there is none
}

// refer returns the client's body with references, as far as encoders have told the
// shapes. What stays as it is gets the uuid by which it was encoded, or engines would not
// find that. A request with audio has references for all of its items, or for none.
func (x *exchange) refer(known []encoded) *body.Body {
	items := x.body.Items
	audio, all := false, x.h.References && !x.usesAudioInVideo()
	some := all
	for i, item := range items {
		audio = audio || embedKinds[item.Kind] == "audio_embeds"
		all = all && known[x.original[i]].shape != nil
	}
	patches := make([]body.Patch, 0, len(items))
	for i, item := range items {
		shape := known[x.original[i]].shape
		switch {
		case shape != nil && (all || some && !audio):
			kind := embedKinds[item.Kind]
			with := fmt.Appendf(nil, `{"type":"%s","%s":%s,"uuid":%s}`, kind, kind, shape, x.quotedUUID(i))
			patches = append(patches, body.Patch{Range: item.Range, With: with})
			x.referred = true
		case item.UUID == "":
			patches = append(patches, item.Name(x.quotedUUID(i)))
		}
	}
	return x.body.Patched(patches)
}

// usesAudioInVideo reports whether videos stand for their sound as well, of which a
// reference to a video says nothing.
func (x *exchange) usesAudioInVideo() bool {
	options, _ := body.Entries(x.body.Value(body.MMProcessorKwargs)) // an error: it is no object
	return slices.ContainsFunc(options, func(e body.Entry) bool {
		return body.IsString(e.Name, "use_audio_in_video") && string(e.Value) != "false" && !body.IsNull(e.Value)
	})
}

// told returns what an encoder tells of the items of a batch.
func (x *exchange) told(b batch, entries []body.Entry) ([]encoded, error) {
	items := make([]encoded, len(b))
	for _, e := range entries {
		members, err := body.Entries(e.Value)
		if err != nil {
			return nil, errors.New("an entry of ec_transfer_params is no object")
		}
		positions, err := x.positions(b, e, members, len(entries))
		if err != nil {
			return nil, err
		}
		shape := flatten(member(members, "metadata"))
		for _, n := range positions {
			if n < 0 || n >= len(b) {
				return nil, fmt.Errorf("item_indices of ec_transfer_params has %d, of %d items", n, len(b))
			}
			if items[n].hash != nil {
				return nil, fmt.Errorf("item %d has more than one entry in ec_transfer_params", n)
			}
			items[n] = encoded{hash: e.Name, shape: shape}
		}
	}
	return items, nil
}

// positions says which items of a batch an entry is about: those that it says or, from
// engines that do not say, the one whose uuid it has, or the only one.
func (x *exchange) positions(b batch, e body.Entry, members []body.Entry, entries int) (positions []int, err error) {
	if indices := member(members, "item_indices"); indices != nil && !body.IsNull(indices) {
		if err := json.Unmarshal(indices, &positions); err != nil {
			return nil, errors.New("item_indices of ec_transfer_params is no list of positions")
		}
		return positions, nil
	}
	for n, i := range b {
		if body.IsString(e.Name, x.uuids[i]) {
			return []int{n}, nil
		}
	}
	if len(b) == 1 && entries == 1 {
		return []int{0}, nil
	}
	return nil, errors.New("ec_transfer_params does not say which entry is for which item")
}

// member returns the value of a member, nil if there is none.
func member(members []body.Entry, name string) []byte {
	for _, m := range members {
		if body.IsString(m.Name, name) {
			return m.Value
		}
	}
	return nil
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
