package fakevllm

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestVaryShapes(t *testing.T) {
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Modern: true, VaryShapes: true})
	decoder := start(t, c, Options{Role: Decode, Modern: true})
	var entries map[string]struct {
		Metadata struct {
			Grid [][]int `json:"image_grid_thw"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(member(t, encodeOne(t, encoder, encodeParts(partA, partB)), "ec_transfer_params")), &entries))
	gridA, gridB := entries[hashOf(t, partA)].Metadata.Grid[0], entries[hashOf(t, partB)].Metadata.Grid[0]
	require.NotEqual(t, gridA, gridB)

	reference := func(part string, grid []int) string {
		return strings.Replace(part, "[1,36,36]", fmt.Sprintf("[%d,%d,%d]", grid[0], grid[1], grid[2]), 1)
	}
	accepted(t, decoder, post(t, decoder, chat, "r", chatOf(reference(refA, gridA), reference(refB, gridB))))
	swapped := chatOf(reference(refA, gridB), reference(refB, gridA))
	refused(t, decoder, post(t, decoder, chat, "r", swapped), http.StatusInternalServerError, `uuid "ua": the shape is`)
}

func TestVaryShapesOfAllKinds(t *testing.T) {
	e := startAlone(t, Options{Role: Encode, Modern: true, VaryShapes: true})
	for part, want := range map[string]string{
		partVideo: `"video_grid_thw":\[\[8,36,\d{3,}\]\]`,
		partInput: `"audio_feature_lengths":\[\d{5,}\]`,
	} {
		assert.Regexp(t, want, encodeOne(t, e, encodeParts(part)).body)
	}
}
