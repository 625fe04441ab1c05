package epdhandler

import (
	"context"
	"io"
	"net"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// bodyConn is a connection to an engine that takes a body as it is. net/http would
// copy it through a buffer of 32 KiB, with a system call for each.
type bodyConn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom. net/http gives it the rest of a request's body.
func (c bodyConn) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	b, ok := limited.R.(*body.Reader)
	if !ok || b.Len() != limited.N {
		return c.TCPConn.ReadFrom(r)
	}
	n, err := b.WriteTo(c.TCPConn)
	limited.N -= n
	return n, err
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dialForBodies makes a dialer give a bodyConn, where nothing else is around the
// connection.
func dialForBodies(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
			return bodyConn{tcp}, nil
		}
		return conn, err
	}
}

// Interface guard
var _ io.ReaderFrom = bodyConn{}
