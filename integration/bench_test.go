package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These benchmarks measure a Caddy in another process. The time and memory that go test prints
// are those of this process, with clients and engines: read the custom metrics.

// bareEngines starts engines that compute nothing and answer at once. Only encoders take
// some time for each item, one item after the other. It returns the lines of a block.
func bareEngines(b *testing.B, encoders int, encode func(item string) time.Duration) string {
	serve := func(work func(id string)) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			work(r.Header.Get("X-Request-Id"))
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"choices":[{"message":{"role":"assistant","content":"hello"}}],"kv_transfer_params":{"remote_host":"h"}}`)
		}))
		b.Cleanup(s.Close)
		return " " + s.Listener.Addr().String()
	}
	idle := func(string) {}
	block := "encode"
	for range encoders {
		var busy sync.Mutex
		block += serve(func(id string) {
			parts := strings.Split(id, ":") // request:item:attempt
			if len(parts) != 3 || encode == nil {
				return
			}
			busy.Lock()
			defer busy.Unlock()
			time.Sleep(encode(parts[1]))
		})
	}
	return block + "\nprefill" + serve(idle) + "\ndecode" + serve(idle)
}

// pictures is a request with this many images of this many bytes of base64.
func pictures(n, size int) string {
	parts := []string{text("What is this?")}
	for i := range n {
		parts = append(parts, image(fmt.Sprintf("%08d", i)+strings.Repeat("iVBORw0KGgo/", size/12)))
	}
	return chat("", parts...)
}

// run sends the body b.N times, and reports Caddy's use of resources.
func (c *caddy) run(b *testing.B, client *http.Client, body string) {
	send := func() {
		res, err := c.send(b.Context(), client, http.MethodPost, chatPath, body)
		require.NoError(b, err)
		answer, err := io.ReadAll(res.Body)
		require.NoError(b, err)
		require.Equal(b, http.StatusOK, res.StatusCode, "%s", answer)
		require.NoError(b, res.Body.Close())
	}
	send() // opens connections and allocates memory
	before := c.cpu(b)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		send()
	}
	b.ReportMetric((c.cpu(b)-before).Seconds()*1000/float64(b.N), "caddy-cpu-ms/op")
}

// cpu is the CPU time that Caddy has used.
func (c *caddy) cpu(b *testing.B) time.Duration {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid), "stat"))
	if err != nil {
		b.Skip("CPU time is only available on Linux")
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from the third on
	ticks := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		require.NoError(b, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// BenchmarkProtocols compares the protocols that clients can use.
func BenchmarkProtocols(b *testing.B) {
	for _, p := range []struct {
		name, scheme string
		http2        bool
	}{{"HTTP/1.1", "http", false}, {"HTTPS, HTTP/1.1", "https", false}, {"HTTPS, HTTP/2", "https", true}} {
		b.Run(p.name, func(b *testing.B) {
			c := start(b, p.scheme, "", "epd_proxy {\n"+bareEngines(b, 2, nil)+"\n}")
			for name, body := range map[string]string{"text": pictures(0, 0), "1 image of 134 kB": pictures(1, 134_000), "4 images of 2.7 MB": pictures(4, 2_700_000)} {
				b.Run(name, func(b *testing.B) { c.run(b, c.client(b, p.http2), body) })
			}
		})
	}
}

// BenchmarkGrowth shows how cost grows with bytes and with items.
func BenchmarkGrowth(b *testing.B) {
	for _, size := range []struct{ items, bytes int }{
		{1, 1 << 10}, {1, 1 << 20}, {1, 10 << 20}, {1, 100 << 20}, {1, 1000 << 20},
		{10, 10 << 10}, {100, 10 << 10}, {1000, 10 << 10},
	} {
		b.Run(fmt.Sprintf("%d items of %d kiB", size.items, size.bytes>>10), func(b *testing.B) {
			c := start(b, "http", "", "epd_proxy {\n"+bareEngines(b, 2, nil)+"\nmax_memory 8GiB\nmax_body_size 2GiB\nmax_media_items 1000\n}")
			idle := c.memory(b, "VmRSS")
			c.run(b, c.client(b, false), pictures(size.items, size.bytes))
			b.ReportMetric(float64(c.memory(b, "VmHWM")-idle)/(1<<20), "caddy-MiB")
		})
	}
}

// BenchmarkSlowUplink has a client send four images of 2 MB over 100 Mbit/s to slow
// encoders. "Overlapped" is an upper bound for the gain of encoding images while
// others are still being received: there, only the last image takes time to encode.
func BenchmarkSlowUplink(b *testing.B) {
	const perSecond = 100_000_000 / 8
	for _, encoders := range []int{1, 2, 4} {
		for _, each := range []time.Duration{10, 50, 100, 200, 400} {
			for _, overlapped := range []bool{false, true} {
				b.Run(fmt.Sprintf("%d encoders, %dms, overlapped %v", encoders, each, overlapped), func(b *testing.B) {
					c := start(b, "http", "", "epd_proxy {\n"+bareEngines(b, encoders, func(item string) time.Duration {
						if overlapped && item != "3" {
							return 0
						}
						return each * time.Millisecond
					})+"\n}")
					tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
						conn, err := new(net.Dialer).DialContext(ctx, network, c.addr)
						return &uplink{Conn: conn, perSecond: perSecond}, err
					}}
					defer tr.CloseIdleConnections()
					c.run(b, &http.Client{Transport: tr}, pictures(4, 2_700_000))
				})
			}
		}
	}
}

// uplink is a connection with a limited write rate.
type uplink struct {
	net.Conn
	perSecond int
	busy      time.Time // end of the last write
}

// Write implements io.Writer.
func (u *uplink) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		const idle = 100 * time.Millisecond // shorter gaps are inaccurate sleeps
		if now := time.Now(); u.busy.Before(now.Add(-idle)) {
			u.busy = now
		}
		var m int
		m, err = u.Conn.Write(p[n:min(n+16<<10, len(p))])
		n += m
		u.busy = u.busy.Add(time.Second * time.Duration(m) / time.Duration(u.perSecond))
		time.Sleep(time.Until(u.busy))
	}
	return n, err
}
