package fakevllm

import (
	"slices"
	"strconv"
)

// shape is the metadata that a modern encoder reports for an item.
func (o Options) shape(i item) map[string]any {
	if o.NoMetadata {
		return map[string]any{}
	}
	if !o.VaryShapes {
		return o.shapes(i.modality)
	}
	n, _ := strconv.ParseInt(i.key[:6], 16, 32) // six hex digits of the hash: practically unique
	varied := make(map[string]any)
	for name, value := range o.shapes(i.modality) {
		varied[name] = vary(value, int(n))
	}
	return varied
}

// shapes is the metadata of each modality; vary makes it differ from item to item.
func (o Options) shapes(modality string) map[string]any {
	if modality == "video" && o.Timing {
		return map[string]any{"video_grid_thw": [][]int{{8, 36, 36}}, "second_per_grid_ts": []int{1}}
	}
	return shapes[modality]
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
