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

// answerTime is more than any answer takes.
const answerTime = 3 * time.Minute

// asked are the requests to a model that were chosen, in both forms.
func (s *suite) asked(r release, m model) []requests.Request {
	return slices.DeleteFunc(requests.Both(m.list(r, s.media())), func(q requests.Request) bool { return !s.match(q.Name) })
}

// reference asks an engine that does it all.
func (s *suite) reference(ctx context.Context, f *fleet, all []requests.Request) (map[string]answer, error) {
	say("%d requests to one engine that does it all", len(all))
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
		r := unseen(i)
		a, err := s.ask(ctx, nil, f.engines["single"].url(), r)
		if err != nil {
			return nil, err
		}
		answers[about(i)] = a
	}
	return answers, nil
}

// record writes how the one engine's answers ended: fake engines are held against it.
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

// compare asks through the proxy, and compares the answers with those of the one engine.
func (s *suite) compare(ctx context.Context, f *fleet, t topology, number int, all []requests.Request, reference map[string]answer) error {
	say("%s: %d requests through the proxy", t.name, len(all))
	p, err := s.startProxy(ctx, f.logs, t.block(f))
	if err != nil {
		return err
	}
	defer p.stop()
	if err := s.handOver(ctx, f, t, p, number, reference[about(number)]); err != nil {
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

// ask asks one question, of the proxy if there is one.
func (s *suite) ask(ctx context.Context, p *proxy, url string, q requests.Request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
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
			s.report.failed(f, t.name, err.Error())
			continue
		}
		if err := s.compare(ctx, f, t, i, all, reference); err != nil {
			return err
		}
	}
	return nil
}
