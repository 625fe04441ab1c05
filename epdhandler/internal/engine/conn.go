package engine

import (
	"context"
	"io"
	"net"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// bodyConn is a connection that takes a body as it is, together with the header before it.
// net/http would copy it through a buffer of 32 KiB; each write is a system call and wakes the
// engine.
type bodyConn struct {
	*net.TCPConn

	next bool   // a request comes whose body is a [body.Reader]: its header to Write, its body to ReadFrom
	head []byte // the header, which waits for the body
}

// Write implements io.Writer.
func (c *bodyConn) Write(p []byte) (int, error) {
	if c.next {
		c.next = false
		c.head = append(c.head, p...)
		return len(p), nil
	}
	if err := c.sendHead(); err != nil { // it was not all of the header
		return 0, err
	}
	return c.TCPConn.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (c *bodyConn) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if b, ok := limited.R.(*body.Reader); ok && b.Len() == limited.N {
			n, err := b.WriteAfter(c.head, c.TCPConn)
			limited.N -= n
			c.head = c.head[:0]
			return n, err
		}
	}
	if err := c.sendHead(); err != nil {
		return 0, err
	}
	return c.TCPConn.ReadFrom(r)
}

func (c *bodyConn) sendHead() error {
	if len(c.head) == 0 {
		return nil
	}
	_, err := c.TCPConn.Write(c.head)
	c.head = c.head[:0]
	return err
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dialForBodies makes a dialer give a bodyConn where it gives a plain TCP connection.
func dialForBodies(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			return &bodyConn{TCPConn: tcp}, nil
		}
		return conn, err
	}
}
