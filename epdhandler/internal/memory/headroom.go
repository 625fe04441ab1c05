package memory

import "sync"

// headroomSize is measured: with 8 MiB, small requests cost a sixth less CPU time, and with
// more hardly less.
const headroomSize = 8 << 20

// Headroom makes Go's garbage collector run less often. It allocates 8 MiB once in the
// process, that live as long as the process and are never written, so they take addresses
// but no memory.
//
// The collector runs when the heap has grown by GOGC percent of what was live. Bodies are
// outside of the heap, so what is live of Caddy's is a few MiB, and without headroom the
// collector would run after every few MiB of allocations under load. With the default of GOGC
// the heap can grow by 8 MiB more between two runs. The settings of the process (GOGC,
// GOMEMLIMIT, debug.SetGCPercent) are not touched: they belong to the operator and to Caddy.
// The 8 MiB count towards GOMEMLIMIT.
func Headroom() { _ = headroom() }

var headroom = sync.OnceValue(func() []byte { return make([]byte, headroomSize) })
