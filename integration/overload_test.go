package integration

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

var overload = flag.Duration("overload", 0, "how long TestOverload overloads Caddy, and measures; 0: a few seconds, without measuring times")

// With ten times the load that the engines can serve, accepted requests are served, the others
// are rejected at once, memory stays bounded, and afterwards the proxy works as before.
//
//	go test ./integration -run TestOverload -v -args -overload 2m
func TestOverload(t *testing.T) {
	if *overload == 0 {
		t.Parallel() // unless memory is measured, which other tests would affect
	}
	if buildFlags != nil {
		t.Skip("the race detector takes memory of its own")
	}
	const (
		limit    = 4
		service  = time.Second
		capacity = 2 * limit * int(time.Second/service) // requests per second
		memory   = 128 << 20
	)
	e := startEngines(t, 2, 0, 2, func(o *fakevllm.Options) {
		o.Forget = true
		if o.Role == fakevllm.Decode {
			o.Delay = service
		}
	})
	c := startCaddy(t, e.block("encode_limit 8", fmt.Sprintf("decode_limit %d", limit), "queue_size 32", "queue_timeout 5s",
		fmt.Sprintf("max_memory %d", memory), "max_body_size 16MiB"))
	length := max(*overload, 4*time.Second)
	quiet := func() []sample { return c.storm(t, capacity/2, max(length/6, time.Second)) }
	before := quiet()
	idle := c.rss(t)

	peak := make(chan int64)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		var most int64
		for ctx.Err() == nil {
			most = max(most, c.rss(t))
			time.Sleep(50 * time.Millisecond)
		}
		peak <- most
	}()
	during := c.storm(t, 10*capacity, length)
	stop()
	rss := <-peak

	if *overload > 0 {
		time.Sleep(10 * time.Second) // promised for this time after the storm
	}
	after := quiet()

	served, refused, other := sort(during)
	t.Logf("RSS: idle %d MiB, bound %d MiB, most %d MiB", idle>>20, memory>>20, rss>>20)
	t.Logf("storm: %d requests, %d served, %d refused, %d others", len(during), len(served), len(refused), len(other))
	t.Logf("refused within: p50 %v, p99 %v", percentile(refused, 50), percentile(refused, 99))
	t.Logf("served within: p50 %v, p99 %v; before the storm p99 %v, 10s after %v", percentile(served, 50), percentile(served, 99), p99(before), p99(after))
	assert.Empty(t, other)
	assert.Less(t, rss, (idle+memory)*12/10)
	assert.NotEmpty(t, refused)
	_, _, failed := sort(slices.Concat(before, after))
	assert.Empty(t, failed)
	e.assertContract(t)
	if *overload == 0 {
		return
	}
	assert.Greater(t, len(served), int(length.Seconds())*capacity*9/10, "engines were partly idle")
	assert.Greater(t, len(refused), len(during)/2, "too few requests were rejected")
	assert.Less(t, percentile(refused, 50), 500*time.Millisecond)
	assert.Less(t, p99(after), p99(before)*12/10)
}

// sample is the result of one request.
type sample struct {
	status int // 0: no response
	took   time.Duration
}

// storm sends requests at a fixed rate, however long they take, and checks the answers.
// Half of the clients use HTTP/2.
func (c *caddy) storm(t *testing.T, perSecond int, length time.Duration) []sample {
	t.Helper()
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		samples []sample
		clients []*http.Client
		data    = strings.Repeat("QUJD", 1<<19) // 2 MiB
	)
	for range 16 { // many: on an HTTP/2 connection, rejected requests delay accepted ones
		clients = append(clients, c.client(t, true), c.client(t, false))
	}
	pace := time.NewTicker(time.Second / time.Duration(perSecond))
	defer pace.Stop()
	end := time.Now().Add(length)
	for n := 0; time.Now().Before(end); n++ {
		<-pace.C
		wg.Go(func() {
			body := chat("", text(fmt.Sprint(n)), image(fmt.Sprintf("%08d", n)+data))
			s := c.sample(t, clients[n%len(clients)], body)
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, s)
		})
	}
	wg.Wait()
	return samples
}

func (c *caddy) sample(t *testing.T, client *http.Client, body string) sample {
	start := time.Now()
	res, err := c.send(t.Context(), client, http.MethodPost, chatPath, body)
	if err != nil {
		t.Log(err)
		return sample{0, time.Since(start)}
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	s := sample{res.StatusCode, time.Since(start)}
	switch res.StatusCode {
	case http.StatusOK:
		text, e := fakevllm.Text(got, false)
		want, _ := fakevllm.Answer([]byte(body))
		if err != nil || e != nil || text != want {
			s.status = 0
		}
	case http.StatusServiceUnavailable:
		assert.Contains(t, string(got), "overloaded")
		assert.NotEmpty(t, res.Header.Get("Retry-After"))
	}
	return s
}

func sort(samples []sample) (served, refused, other []time.Duration) {
	for _, s := range samples {
		switch s.status {
		case http.StatusOK:
			served = append(served, s.took)
		case http.StatusServiceUnavailable:
			refused = append(refused, s.took)
		default:
			other = append(other, s.took)
		}
	}
	return served, refused, other
}

func p99(samples []sample) time.Duration {
	served, _, _ := sort(samples)
	return percentile(served, 99)
}

func percentile(times []time.Duration, p int) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[(len(times)-1)*p/100]
}

// rss is the resident memory of Caddy, in bytes.
func (c *caddy) rss(t testing.TB) int64 {
	t.Helper()
	return c.memory(t, "VmRSS")
}

// memory is a value of Caddy's memory in /proc, in bytes.
func (c *caddy) memory(t testing.TB, name string) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if os.IsNotExist(err) {
		t.Skip("memory is measured by /proc")
	}
	require.NoError(t, err)
	_, line, _ := strings.Cut(string(status), name+":")
	kib, err := strconv.ParseInt(strings.Fields(line)[0], 10, 64)
	require.NoError(t, err)
	return kib << 10
}
