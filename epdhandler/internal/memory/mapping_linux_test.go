package memory

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// protectIdle makes idle memory inaccessible: a use of it faults, or gets EFAULT from the
// system. The race detector does not look at memory outside of Go's heap.
func protectIdle(region []byte, idle bool) {
	access := syscall.PROT_READ | syscall.PROT_WRITE
	if idle {
		access = syscall.PROT_NONE
	}
	if err := syscall.Mprotect(region, access); err != nil {
		panic(err)
	}
}

// Where the system backs all memory with huge pages, a small body takes only what is counted for it.
func TestNoHugePagesForSmallBodies(t *testing.T) {
	t.Parallel()
	l := new(Ledger)
	s, err := l.Reserve(t.Context(), 0, 1<<40)
	require.NoError(t, err)
	b := s.alloc(512 * miB)[:100*kiB]
	clear(b)
	flags, found := flagsOf(t, b)
	require.True(t, found)
	if flags != "" {
		assert.Contains(t, flags+" ", " nh ", "no huge page")
	}
	m := s.end(int64(len(b)))
	assert.Equal(t, inPages(100*kiB), l.Held())
	m.Release()
	assert.EqualValues(t, 64*kiB, inPages(64*kiB))
	assert.EqualValues(t, int64(os.Getpagesize()), inPages(1))
	assert.EqualValues(t, 18*miB, inPages(16*miB+1), "beyond that there may be huge pages")
}

// flagsOf returns the kernel's flags of the mapping that begins with b.
func flagsOf(t *testing.T, b []byte) (flags string, found bool) {
	f, err := os.Open("/proc/self/smaps")
	require.NoError(t, err)
	defer f.Close()
	at := fmt.Sprintf("%x-", uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		found = found || strings.HasPrefix(line, at)
		if rest, ok := strings.CutPrefix(line, "VmFlags:"); ok && found {
			return rest, true
		}
	}
	return "", found
}
