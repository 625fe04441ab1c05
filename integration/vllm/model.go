//go:build unix

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// model is a tiny model with random weights.
type model struct {
	name   string
	script string // makes the model; relative to the repository's root
	flags  []string
	media  []string // besides images
	kwargs bool     // its requests have mm_processor_kwargs
	list   func(release, requests.Media) []requests.Request
}

var models = []model{
	{
		name:   "qwen2.5-vl",
		script: "examples/vllm/tiny_model.py",
		media:  []string{"video"},
		flags:  []string{"--limit-mm-per-prompt", `{"image":16}`},
		list: func(_ release, m requests.Media) []requests.Request {
			return slices.Concat(requests.Texts(), requests.Images(m), requests.Videos(m), requests.Refused(m))
		},
	},
	{
		name:   "qwen2.5-omni",
		script: "integration/vllm/models/omni.py",
		media:  []string{"video", "audio"},
		flags:  []string{"--limit-mm-per-prompt", `{"image":16,"audio":8,"video":4}`},
		kwargs: true,
		list: func(_ release, m requests.Media) []requests.Request {
			return slices.Concat(requests.Images(m), requests.Videos(m), requests.Audios(m), requests.Sounds(m))
		},
	},
	{
		name:   "llava",
		script: "integration/vllm/models/llava.py",
		flags:  []string{"--limit-mm-per-prompt", `{"image":16}`},
		list: func(_ release, m requests.Media) []requests.Request {
			return requests.Images(m)
		},
	},
}

// make makes the model with the libraries of a release, if it does not exist yet.
func (m model) make(ctx context.Context, root, venv, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
		return nil
	}
	say("making the model %s", m.name)
	unfinished := dir + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := run(ctx, nil, filepath.Join(venv, "bin", "python"), filepath.Join(root, m.script), unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, dir)
}

// flags are the flags that a release needs for the model.
func (r release) flags(m model) []string {
	if m.kwargs && r.since("0.31.0") {
		return []string{"--trust-request-mm-kwargs"}
	}
	return nil
}
