//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// until polls until a condition is true.
func until(ctx context.Context, limit time.Duration, is func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		ok, err := is(ctx)
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", limit, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// activity is what an engine does, according to its metrics.
type activity struct {
	running, waiting float64 // requests
	generated        float64 // tokens, since the start
	handedOver       float64 // tokens of prompts whose blocks came from another engine
	answered         float64 // requests, since the start
}

func (a activity) idle() bool { return a.running == 0 && a.waiting == 0 }

// activity reads an engine's metrics.
func (e *engine) activity(ctx context.Context) (a activity, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := get(ctx, e.url()+"/metrics", "*/*")
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	known := false
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), "{")
		value := lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:]
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "vllm:num_requests_running":
			a.running += n
			known = true
		case "vllm:num_requests_waiting":
			a.waiting += n
		case "vllm:generation_tokens_total":
			a.generated += n
		case "vllm:request_success_total":
			a.answered += n
		case "vllm:external_prefix_cache_hits_total":
			a.handedOver += n
		}
	}
	if err := lines.Err(); err != nil || known {
		return a, err
	}
	return a, fmt.Errorf("%s has no metrics of its requests", e.name)
}

// get returns the body of an answer with status 200.
func get(ctx context.Context, url, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp, nil
}
