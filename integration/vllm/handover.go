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

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// Equal answers do not tell whether a consumer has used the embeddings that were made for it, or a
// decode the blocks: each can do all of the work itself. So both are looked for.

// unseen is an image that each topology sees once: the one of its number.
func unseen(number int) requests.Request {
	return requests.AboutImage(pattern(uint64(number)), 24)
}

func about(number int) string { return fmt.Sprintf("unseen image %d", number) }

// handOver makes sure that engines use what others have made for them. Number says which image is
// new to them, and want is the right answer about it.
func (s *suite) handOver(ctx context.Context, f *fleet, t topology, p *proxy, number int, want answer) error {
	hits, err := f.hits(ctx, t.decode)
	if err != nil {
		return err
	}
	if err := s.embeddingsAreUsed(ctx, f, p, unseen(number), want); err != nil {
		return err
	}
	after, err := f.hits(ctx, t.decode)
	if err == nil && len(t.prefill) > 0 && after == hits {
		err = errors.New("decode has used no blocks of prefill")
	}
	return err
}

// hits is how many tokens engines did not compute, because others gave them the blocks.
func (f *fleet) hits(ctx context.Context, names []string) (sum float64, err error) {
	for _, name := range names {
		a, err := f.engines[name].activity(ctx)
		if err != nil {
			return 0, err
		}
		sum += a.handedOver
	}
	return sum, nil
}

// embeddingsAreUsed has an image encoded by a request that the consumer refuses, changes the
// embedding, and asks about the image: the answer must be another one then.
func (s *suite) embeddingsAreUsed(ctx context.Context, f *fleet, p *proxy, r requests.Request, want answer) error {
	before, err := f.embeddings()
	if err != nil {
		return err
	}
	if refused, err := s.ask(ctx, p, p.url(), r.Spoilt()); err != nil || refused.Status != http.StatusBadRequest {
		return errors.Join(err, fmt.Errorf("a request that engines refuse: %s", outcome(refused)))
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
		return fmt.Errorf("an image whose embedding was changed: %s: %s", outcome(got), brief(got.Body))
	case difference(want, got) == "":
		return errors.New("the consumer has not used the embedding, but made its own")
	}
	return nil
}

// embeddings are the files that encoders have written.
func (f *fleet) embeddings() ([]string, error) {
	return filepath.Glob(filepath.Join(f.storage, "*", "*.safetensors"))
}

// negate changes the sign of all numbers in a file of 32-bit floats: a header, its length in front
// of it, and the numbers.
func negate(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const length = 8
	if len(data) < length || binary.LittleEndian.Uint64(data) > uint64(len(data)-length) {
		return fmt.Errorf("%s is no safetensors file", path)
	}
	numbers := data[length+int(binary.LittleEndian.Uint64(data)):]
	for i := 3; i < len(numbers); i += 4 {
		numbers[i] ^= 0x80
	}
	return os.WriteFile(path, data, 0o644)
}
