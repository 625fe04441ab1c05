// Command quickstart shows epd_proxy on a machine that has only Go:
//
//	go run ./examples/quickstart
//
// It starts fake vLLM engines and, in the same process, Caddy with epd_proxy. Then
// it sends a request with an image through them, prints the answer and the stages of the
// request, and stays up for more requests, with Caddy's metrics and the status of the
// pools.
//
// It listens only on 127.0.0.1, and leaves nothing behind: no file, no certificate in
// the system's trust store.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const intro = `epd_proxy quickstart: a request with an image goes through encode, prefill and decode.
The engines are FAKE: no GPU, no model. They check the protocol and echo what they received.
`

func main() {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), intro+"\nUsage: go run ./examples/quickstart\n")
	}
	if flag.Parse(); flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, func() {
		time.Sleep(300 * time.Millisecond) // timeout(1) and others send a signal twice
		stop()                             // a second one ends the program at once
	})
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run is the whole program. When ctx is done, it waits for running requests and
// returns nil.
func run(ctx context.Context, out io.Writer) (err error) {
	to := printer{out}
	to.printf("%s", intro)

	dir, err := os.MkdirTemp("", "epd_proxy-quickstart-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	engines, err := startEngines()
	if err != nil {
		return err
	}
	defer engines.close()

	proxy, err := startProxy(dir, engines.block())
	if err != nil {
		return err
	}
	err = show(ctx, to, engines, proxy)
	engines.drain()
	proxy.stop()
	for r := range proxy.reports { // of requests that have ended since
		to.printf("%s\n", r.line(engines))
	}
	return err
}

// show sends the request, and then waits for others until ctx is done.
func show(ctx context.Context, to printer, engines *engines, proxy *proxy) error {
	if ctx.Err() != nil {
		return nil
	}
	to.printf("\nCaddy serves %s with this in its Caddyfile:\n\n%s", proxy.url, proxy.block)
	to.printf("\nThe answer to %q about a small image: a greeting, the question, the image's hash.\n\n  ", question)
	id, err := ask(proxy, to)
	if err != nil {
		return err
	}
	to.printf("\n\nThe stages of the request:\n\n")
	for {
		select {
		case <-ctx.Done():
			return nil
		case r, ok := <-proxy.reports:
			switch {
			case !ok:
				return errors.New("the access log of Caddy has ended")
			case r.EPD.RequestID == id:
				to.printf("%s\nSend it again from another terminal:\n\n%s\n\n", r.table(engines), curl(proxy))
				to.printf("Status of the pools: %s/epd/status (also in a browser)\nMetrics:             %s/metrics\n\n", proxy.admin, proxy.admin)
				to.printf("Waiting for requests. Ctrl-C ends it.\n")
			default:
				to.printf("%s\n", r.line(engines))
			}
		}
	}
}

// printer prints to the user. Errors of writing are ignored, because they could not be shown.
type printer struct{ w io.Writer }

func (p printer) printf(format string, args ...any) { _, _ = fmt.Fprintf(p.w, format, args...) }
