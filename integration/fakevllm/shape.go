package fakevllm

import (
	"slices"
	"strconv"
)

// shape is what a modern encoder tells of an item.
func (o Options) shape(i item) map[string]any {
	if o.NoMetadata {
		return map[string]any{}
	}
	if !o.VaryShapes {
		return shapes[i.kind]
	}
	n, _ := strconv.ParseInt(i.key[:6], 16, 32) // six digits of a hash, as good as unique
	varied := make(map[string]any)
	for name, value := range shapes[i.kind] {
		varied[name] = vary(value, int(n))
	}
	return varied
}

// vary adds to the last number.
func vary(value any, n int) any {
	if rows, ok := value.([][]int); ok {
		return [][]int{vary(rows[0], n).([]int)}
	}
	numbers := slices.Clone(value.([]int))
	numbers[len(numbers)-1] += n
	return numbers
}

// flattened is the metadata as references have it: one level less, canonical.
func flattened(metadata map[string]any) string {
	flat := make(map[string]any)
	for name, value := range metadata {
		if rows, ok := value.([][]int); ok {
			value = slices.Concat(rows...)
		}
		flat[name] = value
	}
	return string(marshal(flat))
}
