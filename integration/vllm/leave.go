//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// leave closes connections in the middle of requests: soon after, no engine may still work for them.
func leave(ctx context.Context, t *trial) error {
	const endless = 7000
	stream := requests.AboutText(endless).Streamed()
	image := func() requests.Request { return requests.AboutImage(pattern(rand.Uint64()), endless) }
	for _, c := range []struct {
		name    string
		request requests.Request
		after   func(body io.Reader) error
		wait    time.Duration
	}{
		{"in a stream", stream, func(body io.Reader) error { return events(body, 40) }, 0},
		{"in an answer that is not streamed", requests.AboutText(endless), nil, 1500 * time.Millisecond},
		{"during the encode", image(), nil, 30 * time.Millisecond},
		{"a little later", image(), nil, 150 * time.Millisecond},
		{"in a stream about an image", image().Streamed(), func(body io.Reader) error { return events(body, 5) }, 0},
	} {
		if err := t.leaves(ctx, c.request, c.wait, c.after); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if err := t.calm(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// leaves sends a request and closes the connection after a time, or after reading a part of the answer.
func (t *trial) leaves(ctx context.Context, r requests.Request, wait time.Duration, enough func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if enough == nil {
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	resp, err := post(ctx, t.proxy.client, t.proxy.url(), r)
	if enough == nil {
		if err == nil {
			resp.Body.Close()
			return errors.New("the answer came before the client could leave")
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return enough(resp.Body)
}

// events reads n events of a stream.
func events(body io.Reader, n int) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: ") {
			if n--; n == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("the stream ended %d events early: %w", n, lines.Err())
}

// calm waits until all engines are idle, and checks that they stay idle.
func (t *trial) calm(ctx context.Context) error {
	var before, after float64
	for i, sum := range []*float64{&before, &after} {
		if i > 0 {
			time.Sleep(time.Second) // any engine that still works generates tokens in this time
		}
		for _, name := range t.topology.engines() {
			e := t.fleet.engines[name]
			err := until(ctx, 5*time.Second, func(ctx context.Context) (bool, error) {
				a, err := e.activity(ctx)
				if err == nil && a.idle() {
					*sum += a.generated
				}
				return a.idle(), err
			})
			if err != nil {
				return fmt.Errorf("%s still works: %w", name, err)
			}
		}
	}
	if before != after {
		return fmt.Errorf("generated %v more tokens", after-before)
	}
	return nil
}
