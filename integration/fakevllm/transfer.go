package fakevllm

// transfer is an encoder's entry in ec_transfer_params.
type transfer struct {
	Metadata    map[string]any `json:"metadata"`
	ItemIndices []int          `json:"item_indices,omitempty"`
	Modality    string         `json:"modality,omitempty"`
	*handle
}

// handle is where and how a consumer can get an embedding, once.
type handle struct {
	PeerHost  string `json:"peer_host"`
	PeerPort  int    `json:"peer_port"`
	SizeBytes int    `json:"size_bytes"`
	Handle    string `json:"handle"`
}

// newTransfer offers the only item of an encode request.
func newTransfer(modality string, port int) transfer {
	return transfer{Metadata: shapes[modality], ItemIndices: []int{0}, handle: newHandle(port)}
}

func newHandle(port int) *handle {
	return &handle{
		PeerHost:  "127.0.0.1",
		PeerPort:  port,
		SizeBytes: 36 * 36 / 4 * 2048 * 2, // patches, merged by four, in bfloat16
		Handle:    randomHex(16),
	}
}

// shapes is the metadata of each modality.
var shapes = map[string]map[string]any{
	"image": {"image_grid_thw": [][]int{{1, 36, 36}}},
	"video": {"video_grid_thw": [][]int{{8, 36, 36}}},
	"audio": {"audio_feature_lengths": []int{1296}},
}

// opaque is the part of the entry that must be returned unchanged.
func (t transfer) opaque() string {
	o, err := parseObject(marshal(t))
	if err != nil {
		panic(err) // t is a struct, so this is an object
	}
	return opaque(o)
}

// opaque removes what a proxy reads and may change: shape and positions.
func opaque(entry object) string {
	rest := make(object)
	for name, value := range entry {
		if name != "metadata" && name != "item_indices" && name != "modality" {
			rest[name] = value
		}
	}
	return canonical(marshal(rest))
}

// presented is an entry of ec_transfer_params in a request to a consumer.
type presented struct {
	handle string
	opaque string
}

// brought is the part of a request by which a consumer gets embeddings.
type brought struct {
	entries map[string]presented // by mm_hash
	asked   []asked              // ec_items
}

// brought reads ec_transfer_params. On an engine that is not modern, ec_items is an
// entry like any other.
func (x *exchange) brought() (brought, error) {
	raw := x.members["ec_transfer_params"]
	if !x.members.has("ec_transfer_params") {
		return brought{}, nil
	}
	all, err := parseObject(raw)
	if err != nil {
		return brought{}, engineFailure("ec_transfer_params: %v", err)
	}
	var b brought
	if x.engine.options.Modern {
		if b.asked, err = readAsked(all); err != nil {
			return brought{}, err
		}
		delete(all, "ec_items")
	}
	b.entries, err = readEntries(all)
	return b, err
}

func readEntries(all object) (map[string]presented, error) {
	entries := make(map[string]presented)
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

// consume loads the embeddings of the request's items.
func (x *exchange) consume() error {
	b, err := x.brought()
	if err != nil {
		return err
	}
	return x.engine.cluster.consume(x.prompt.items, b, x.engine.options)
}

// spend is for an engine that reads all handles and transfers of the request and then fails.
func (x *exchange) spend() {
	b, _ := x.brought() // invalid parameters have nothing to spend
	x.engine.cluster.spend(b, x.members["kv_transfer_params"])
}
