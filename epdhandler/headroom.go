package epdhandler

import "sync"

// headroomSize is measured: with 8 MiB, small requests cost a sixth less CPU. More
// brings little, and counts: it is how much more memory Caddy may take under load.
const headroomSize = 8 << 20

// headroom is memory that nothing is ever written to, so that it takes none, but that
// Go's garbage collector counts. It runs when the heap has doubled, and with the bodies
// outside of it Caddy's heap is so small that it would run all the time. Unlike another
// GOGC, this leaves alone what the process has been told.
var headroom = sync.OnceValue(func() []byte { return make([]byte, headroomSize) })
