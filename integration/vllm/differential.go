//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// answerTime is the limit for one answer.
const answerTime = 3 * time.Minute

// asked are the chosen requests to a model, in both forms.
func (s *suite) asked(r release, m model) []requests.Request {
	return slices.DeleteFunc(requests.Both(m.list(r, s.media())), func(q requests.Request) bool { return !s.match(q.Name) })
}

// reference asks a single engine that runs all stages.
func (s *suite) reference(ctx context.Context, f *fleet, all []requests.Request) (map[string]answer, error) {
	say("%d requests to a single engine that runs all stages", len(all))
	answers := map[string]answer{}
	for _, q := range all {
		a, err := s.ask(ctx, nil, f.engines["single"].url(), q)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", q.Name, err)
		}
		answers[q.Name] = a
	}
	if err := record(filepath.Join(filepath.Dir(f.logs), "outcomes.json"), answers); err != nil {
		return nil, err
	}
	for i := range s.topologiesOf(f.release) {
		for _, r := range f.model.unseen(i) {
			a, err := s.ask(ctx, nil, f.engines["single"].url(), r)
			if err != nil {
				return nil, err
			}
			answers[r.Name] = a
		}
	}
	s.judgeReference(f, all, answers)
	return answers, nil
}

// judgeReference checks that the single engine is usable as a reference: it serves nearly all
// valid requests (older releases have fewer options), and its answers depend on the media.
func (s *suite) judgeReference(f *fleet, all []requests.Request, answers map[string]answer) {
	var failed []string
	for _, q := range all {
		if !q.Refused && outcome(answers[q.Name]) != "200" {
			failed = append(failed, q.Name)
		}
	}
	if len(failed) > len(all)/20 {
		s.report.failed(f, "one engine", fmt.Sprintf("it fails %q", failed))
	}
	for name, other := range map[string]string{"one image": "another image", "two images": "two images, swapped", "one audio": "another audio"} {
		a, asked := answers[name]
		if b, too := answers[other]; asked && too && difference(a, b) == "" {
			s.report.failed(f, "one engine", name+": the same answer as to "+other)
		}
	}
}

// record writes the outcomes of the single engine's answers; the fake engines are compared with them.
func record(path string, answers map[string]answer) error {
	outcomes := map[string]string{}
	for name, a := range answers {
		outcomes[name] = outcome(a)
	}
	data, err := json.MarshalIndent(outcomes, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// compare sends the requests through the proxy and compares the answers with those of the single engine.
func (s *suite) compare(ctx context.Context, f *fleet, t topology, number int, all []requests.Request, reference map[string]answer) error {
	say("%s: %d requests through the proxy", t.name, len(all))
	p, err := s.startProxy(ctx, f.logs, t.block(f))
	if err != nil {
		return err
	}
	defer p.stop()
	if err := s.handOver(ctx, f, t, p, number, reference); err != nil && ctx.Err() == nil {
		s.report.failed(f, t.name, err.Error())
	}
	for _, q := range all {
		got, err := s.ask(ctx, p, p.url(), q)
		if err != nil {
			got = answer{Failed: err.Error()}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.report.compared(f, t.name, q, reference[q.Name], got)
		if dead := f.dead(); len(dead) > 0 {
			s.report.failed(f, t.name, fmt.Sprintf("%s: %v ended", q.Name, dead))
			if err := f.want(ctx, t.engines()...); err != nil {
				return err
			}
		}
	}
	return nil
}

// ask sends one request, through the proxy if there is one.
func (s *suite) ask(ctx context.Context, p *proxy, url string, q requests.Request) (answer, error) {
	client := s.direct
	if p != nil {
		client = p.client
	}
	return ask(ctx, client, url, q)
}

// differential compares all requests in all topologies that the release has.
func (s *suite) differential(ctx context.Context, f *fleet) error {
	chosen := s.topologiesOf(f.release)
	if len(chosen) == 0 {
		return nil
	}
	all := s.asked(f.release, f.model)
	if err := f.want(ctx, append(chosen[0].engines(), "single")...); err != nil {
		return err
	}
	reference, err := s.reference(ctx, f, all)
	if err != nil {
		return err
	}
	for i, t := range chosen {
		if err := f.want(ctx, t.engines()...); err != nil {
			if ctx.Err() != nil {
				return err
			}
			s.report.failed(f, t.name, err.Error())
			continue
		}
		if err := s.compare(ctx, f, t, i, all, reference); err != nil {
			return err
		}
	}
	return nil
}
