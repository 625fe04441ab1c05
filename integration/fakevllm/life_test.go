package fakevllm

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// keepAlive sends a request on the connection and reads its answer.
func keepAlive(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.WriteString(c, raw(chat, rawHeaders(len(textChat)), textChat))
	require.NoError(t, err)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestIdleTimeout(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, IdleTimeout: 50 * time.Millisecond})
	c := dial(t, e)
	keepAlive(t, c)
	keepAlive(t, c)
	idle := time.Now()
	_, err := c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF, "closed, not reset")
	assert.GreaterOrEqual(t, time.Since(idle), 40*time.Millisecond)
	assert.Empty(t, e.Cancellations())
}

func TestIdleTimeoutSparesBusyConnections(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, IdleTimeout: 10 * time.Millisecond, Delay: 60 * time.Millisecond})
	keepAlive(t, dial(t, e))
}

func TestIdleTimeoutDefault(t *testing.T) {
	assert.Equal(t, 5*time.Second, Options{}.withDefaults().IdleTimeout)
}

func TestKillResetsEverything(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	fresh, used := dial(t, e), dial(t, e)
	keepAlive(t, used)
	e.SetFault(Fault{Kind: Hang})
	hanging := postAsync(t, t.Context(), e, "r", textChat)
	eventually(t, func() bool { return e.InFlight() == 1 })

	e.Kill()
	_, err := net.Dial("tcp", e.Addr())
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
	for _, c := range []net.Conn{fresh, used} {
		_, err := c.Read(make([]byte, 1))
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
	assert.ErrorIs(t, await(t, hanging), syscall.ECONNRESET)
	eventually(t, func() bool { return e.InFlight() == 0 })
	assert.Empty(t, e.Cancellations(), "no client has left")
	e.Kill()
}

func TestKillDuringStream(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, ChunkDelay: time.Hour})
	response, err := client.Do(newRequest(t, e, chat, "r", with(textChat, "stream", "true")))
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	e.Kill()
	_, err = io.ReadAll(response.Body)
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	eventually(t, func() bool { return e.InFlight() == 0 })
	assert.Empty(t, e.Cancellations())
}

func TestRestart(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	addr := e.Addr()
	post(t, e, chat, "r", textChat)
	for range 20 {
		e.Kill()
		_, err := try(newRequest(t, e, chat, "r", textChat))
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.NoError(t, e.Restart())
		require.Equal(t, addr, e.Addr())
		accepted(t, e, post(t, e, chat, "r", textChat))
	}
	assert.Len(t, e.Requests(), 21)
}

func TestRestartOfARunningEngine(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	c := dial(t, e)
	keepAlive(t, c)
	require.NoError(t, e.Restart())
	_, err := c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	accepted(t, e, post(t, e, chat, "r", textChat))
}

func TestRestartAfterClose(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, Name: "d"})
	e.Close()
	e.Close()
	e.Kill()
	assert.EqualError(t, e.Restart(), "restart d: engine is closed")
}

// After a prefill engine was killed, its cluster still has the blocks.
func TestClusterOutlivesEngines(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode}), start(t, c, Options{Role: Decode})
	encodeOne(t, encoder, imageEncode)
	encoder.Close()
	require.NoError(t, decoder.Restart())
	accepted(t, decoder, post(t, decoder, chat, "r", imageChat))
}

// Kills and restarts run concurrently with requests, to find data races and deadlocks.
func TestKillUnderLoad(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for n := range 8 {
		r := newRequest(t, e, chat, "client-"+strconv.Itoa(n), with(textChat, "stream", "true"))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					again := r.Clone(t.Context())
					again.Body, _ = r.GetBody()
					_, _ = try(again) // a dying engine may cause any error
				}
			}
		})
	}
	for n := range 30 {
		e.SetFault(Fault{Kind: []FaultKind{None, Crash, Hang}[n%3]})
		arrived := len(e.Requests())
		eventually(t, func() bool { return len(e.Requests()) > arrived })
		e.Kill()
		require.NoError(t, e.Restart())
	}
	e.SetFault(Fault{})
	close(stop)
	wg.Wait()
	assert.Empty(t, e.Cancellations(), "only the engine has died")
	assert.Empty(t, e.Refusals())
}

// serverGoroutines is the number of goroutines of all engines.
func serverGoroutines() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for goroutine := range strings.SplitSeq(string(stacks), "\n\n") {
		for _, of := range []string{"net/http.(*Server)", "net/http.(*conn)", "net/http.(*connReader)", "fakevllm.newLife"} {
			if strings.Contains(goroutine, of) {
				n++
				break
			}
		}
	}
	return n
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	eventually(t, func() bool { return serverGoroutines() == 0 }) // of other tests
	e, err := NewCluster().Start(Options{Role: Decode})
	require.NoError(t, err)
	for range 5 {
		keepAlive(t, dial(t, e))
	}
	e.SetFault(Fault{Kind: Hang})
	var hanging []<-chan error
	for _, id := range []string{"a", "b", "c"} {
		hanging = append(hanging, postAsync(t, t.Context(), e, id, textChat))
	}
	require.NoError(t, e.Restart())
	for _, id := range []string{"a", "b", "c"} {
		hanging = append(hanging, postAsync(t, t.Context(), e, id, textChat))
	}
	assert.GreaterOrEqual(t, serverGoroutines(), 4)
	e.Close()
	assert.Zero(t, e.InFlight(), "close waits for requests")
	for _, h := range hanging {
		assert.Error(t, await(t, h))
	}
	eventually(t, func() bool { return serverGoroutines() == 0 })
}
