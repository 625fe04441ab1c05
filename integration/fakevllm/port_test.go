package fakevllm

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ephemeral is the first port that a system assigns to an outgoing connection.
const ephemeral = 32768

func TestFreePort(t *testing.T) {
	seen := make(map[int]bool)
	for range 100 {
		port, err := FreePort()
		require.NoError(t, err)
		assert.False(t, seen[port], "port %d given twice", port)
		assert.Less(t, port, ephemeral)
		seen[port] = true
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
}

// A port in use is skipped.
func TestFreePortIsFree(t *testing.T) {
	for network, listen := range map[string]func(addr string) (io.Closer, error){
		"tcp": func(addr string) (io.Closer, error) { return net.Listen("tcp", addr) },
		"udp": func(addr string) (io.Closer, error) { return net.ListenPacket("udp", addr) },
	} {
		t.Run(network, func(t *testing.T) {
			last, err := FreePort()
			require.NoError(t, err)
			next := firstPort + (last-firstPort+1)%ports
			if taken, err := listen(fmt.Sprintf("127.0.0.1:%d", next)); err == nil {
				defer taken.Close()
			}
			got, err := FreePort()
			require.NoError(t, err)
			assert.NotEqual(t, next, got)
		})
	}
}

// No outgoing connection can have the port of a dead engine.
func TestDeadEngineKeepsItsPort(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	assert.Less(t, e.port, ephemeral)
	for range 20 {
		e.Kill()
		require.NoError(t, e.Restart())
	}
}
