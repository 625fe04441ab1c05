package handover

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Mooncake is MooncakeConnector, as in vLLM 0.32.0: mooncake_connector.py and mooncake_utils.py in
// vllm/distributed/kv_transfer/kv_connector/v1/mooncake, and the proxy in
// examples/disaggregated/mooncake_connector.
//
// Prefill's answer says nothing of the blocks. Prefill and decode know a hand-over by a
// transfer_id of the proxy's. Decode asks the bootstrap server of the prefill instance where
// its workers are, and needs the id of the engine for that, which changes with a restart.
//
// Prefill hands over only what ends because it has all its tokens (FINISHED_LENGTH_CAPPED). Decode
// would wait for minutes for other blocks, so the one token must not end the answer in another way.
type Mooncake map[string]*Bootstrap // by the address of the instance of prefill

// mooncakeParams are kv_transfer_params. Only decode gets the last two.
type mooncakeParams struct {
	RemoteDecode  bool   `json:"do_remote_decode"`
	RemotePrefill bool   `json:"do_remote_prefill"`
	TransferID    string `json:"transfer_id"`
	EngineID      string `json:"remote_engine_id,omitempty"`
	Bootstrap     string `json:"remote_bootstrap_addr,omitempty"`
}

// Request implements Connector.
func (m Mooncake) Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	transfer := hex.EncodeToString(id[:])
	params, _ := json.Marshal(mooncakeParams{RemoteDecode: true, TransferID: transfer}) // strings
	r := request(prompt,
		body.Set(body.KVTransferParams, params),
		embeddings,
		body.Set("ignore_eos", "true"),
		body.Remove("stop"),
		body.Remove("stop_token_ids"))
	return r, func(ctx context.Context, answer []byte, address string, sent time.Time) (Blocks, error) {
		none := Blocks{Made: time.Now(), Cached: -1}
		b, err := body.Parse(answer)
		if err != nil || FinishReason(answer) != "length" {
			return none, err
		}
		at := m[address]
		engine, err := at.engineID(ctx, sent)
		if err != nil {
			return none, fmt.Errorf("the bootstrap server (kv_bootstrap): %w", err)
		}
		params, _ := json.Marshal(mooncakeParams{false, true, transfer, engine, at.Address}) // strings
		return Blocks{params, none.Made, cachedTokens(b)}, nil
	}
}
