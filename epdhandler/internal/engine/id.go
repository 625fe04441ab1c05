package engine

import (
	"fmt"
	"math/rand/v2"
)

// RandomHex returns n random hexadecimal digits, 16 at most. They tell requests and attempts apart;
// they are no secret.
func RandomHex(n int) string { return fmt.Sprintf("%016x", rand.Uint64())[:n] }
