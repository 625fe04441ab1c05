//go:build unix

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// Equal answers do not show whether a consumer has used the embeddings that were made for it, or
// decode the KV blocks: each can do all of the work itself. These checks show it.

// handOver checks that engines use the embeddings and blocks that others have made for them. Each
// number gives media that the engines have not seen.
func (s *suite) handOver(ctx context.Context, f *fleet, t topology, p *proxy, number int, reference map[string]answer) error {
	hits, err := f.sum(ctx, t.decode, func(a activity) float64 { return a.handedOver })
	if err != nil {
		return err
	}
	for _, r := range f.model.unseen(number) {
		if err := s.embeddingsAreUsed(ctx, f, p, r, reference[r.Name]); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	after, err := f.sum(ctx, t.decode, func(a activity) float64 { return a.handedOver })
	if err == nil && len(t.prefill) > 0 && after == hits {
		err = errors.New("decode has used no blocks of prefill")
	}
	if err != nil || !strings.Contains(t.options, "encode_batch") {
		return err
	}
	return s.imagesAreBatched(ctx, f, t, p)
}

// imagesAreBatched counts the encode requests for an album.
func (s *suite) imagesAreBatched(ctx context.Context, f *fleet, t topology, p *proxy) error {
	answered := func(a activity) float64 { return a.answered }
	before, err := f.sum(ctx, t.encode, answered)
	if err != nil {
		return err
	}
	if a, err := s.ask(ctx, p, p.url(), requests.Album(patterns(6)...)); err != nil || a.Status != http.StatusOK {
		return errors.Join(err, fmt.Errorf("an album: %s", outcome(a)))
	}
	after, err := f.sum(ctx, t.encode, answered)
	if asked := after - before; err == nil && asked != float64(len(t.encode)) {
		err = fmt.Errorf("encoders got %v requests for six images, want one each", asked)
	}
	return err
}

// sum adds up a metric of several engines.
func (f *fleet) sum(ctx context.Context, names []string, what func(activity) float64) (sum float64, err error) {
	for _, name := range names {
		a, err := f.engines[name].activity(ctx)
		if err != nil {
			return 0, err
		}
		sum += what(a)
	}
	return sum, nil
}

// embeddingsAreUsed sends a request that is encoded but rejected by the consumer, changes the
// embedding, and sends the media again: the answer must then be different.
func (s *suite) embeddingsAreUsed(ctx context.Context, f *fleet, p *proxy, r requests.Request, want answer) error {
	before, err := f.embeddings()
	if err != nil {
		return err
	}
	if refused, err := s.ask(ctx, p, p.url(), r.Spoilt()); err != nil || refused.Status != http.StatusBadRequest {
		return errors.Join(err, fmt.Errorf("want status 400 for an invalid request: %s", outcome(refused)))
	}
	files, err := f.embeddings()
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(name string) bool { return slices.Contains(before, name) })
	if len(files) == 0 {
		return errors.New("the encoder has written no embedding")
	}
	for _, file := range files {
		if err := negate(file); err != nil {
			return err
		}
	}
	got, err := s.ask(ctx, p, p.url(), r)
	switch {
	case err != nil:
		return err
	case got.Status != http.StatusOK:
		return fmt.Errorf("media whose embedding was changed: %s: %s", outcome(got), brief(got.Body))
	case difference(want, got) == "":
		return errors.New("the consumer has not used the embedding, but computed its own")
	}
	return nil
}

// embeddings are the files that encoders have written.
func (f *fleet) embeddings() ([]string, error) {
	return filepath.Glob(filepath.Join(f.storage, "*", "*.safetensors"))
}

// negate changes the sign of all numbers in a safetensors file of 32-bit floats: the length of the
// header, the header, and the numbers.
func negate(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const length = 8
	if len(data) < length || binary.LittleEndian.Uint64(data) > uint64(len(data)-length) {
		return fmt.Errorf("%s is not a safetensors file", path)
	}
	numbers := data[length+int(binary.LittleEndian.Uint64(data)):]
	for i := 3; i < len(numbers); i += 4 {
		numbers[i] ^= 0x80
	}
	return os.WriteFile(path, data, 0o644)
}
