package fakevllm

import "encoding/json"

// transfer is an encoder's entry in ec_transfer_params.
type transfer struct {
	Metadata    map[string]any `json:"metadata"`
	ItemIndices []int          `json:"item_indices"`
	PeerHost    string         `json:"peer_host"`
	PeerPort    int            `json:"peer_port"`
	SizeBytes   int            `json:"size_bytes"`
	Handle      string         `json:"handle"`
}

// newTransfer offers the only item of an encode request.
func newTransfer(kind string, port int) transfer {
	return transfer{
		Metadata:    shapes[kind],
		ItemIndices: []int{0},
		PeerHost:    "127.0.0.1",
		PeerPort:    port,
		SizeBytes:   36 * 36 / 4 * 2048 * 2, // patches, merged by four, in bfloat16
		Handle:      randomHex(16),
	}
}

// shapes is what the metadata tells of each kind of media.
var shapes = map[string]map[string]any{
	"image_url":   {"image_grid_thw": [][]int{{1, 36, 36}}},
	"video_url":   {"video_grid_thw": [][]int{{8, 36, 36}}},
	"audio_url":   {"audio_feature_lengths": []int{1296}},
	"input_audio": {"audio_feature_lengths": []int{1296}},
}

// opaque is the part of the entry that must come back as it is.
func (t transfer) opaque() string {
	o, err := parseObject(marshal(t))
	if err != nil {
		panic(err) // t is a struct, so this is an object
	}
	return opaque(o)
}

// opaque leaves out what a proxy reads and may adapt: shape and positions.
func opaque(entry object) string {
	rest := make(object)
	for name, value := range entry {
		if name != "metadata" && name != "item_indices" {
			rest[name] = value
		}
	}
	return canonical(marshal(rest))
}

// presented is an entry of ec_transfer_params as a consumer gets it.
type presented struct {
	handle string
	opaque string
}

// readTransfers reads ec_transfer_params, by mm_hash.
func readTransfers(raw json.RawMessage) (map[string]presented, error) {
	entries := make(map[string]presented)
	if raw == nil || string(raw) == "null" {
		return entries, nil
	}
	all, err := parseObject(raw)
	if err != nil {
		return nil, engineFailure("ec_transfer_params: %v", err)
	}
	for hash, value := range all {
		entry, err := parseObject(value)
		if err != nil {
			return nil, engineFailure("ec_transfer_params: %s: %v", hash, err)
		}
		handle, _ := stringOf(entry["handle"])
		entries[hash] = presented{handle, opaque(entry)}
	}
	return entries, nil
}
