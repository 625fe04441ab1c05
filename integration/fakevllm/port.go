package fakevllm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// Systems assign ports from 32768 (Linux) or 49152 up to outgoing connections. A port below
// them stays free until a server listens on it, also while an engine is dead.
const firstPort, ports = 20000, 12768

// port is the last port that was tried. Each process starts at another one.
var port = func() *atomic.Uint32 {
	var start atomic.Uint32
	start.Store(rand.Uint32N(ports))
	return &start
}()

// FreePort returns a port of 127.0.0.1 that neither TCP nor UDP uses. It never
// returns the same port twice, so the port can be used later.
func FreePort() (int, error) {
	l, err := listenFree()
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// listenFree listens on such a port.
func listenFree() (net.Listener, error) {
	var last error
	for range ports {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+port.Add(1)%ports)
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			last = err
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err = errors.Join(err, udp.Close()); err == nil {
			return l, nil
		}
		last = err
	}
	return nil, fmt.Errorf("no free port: %w", last)
}
