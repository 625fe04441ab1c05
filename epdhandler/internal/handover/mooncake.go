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
// transfer_id of the proxy's, and decode asks the bootstrap server of the prefill instance where
// its workers are. It needs the id of the engine for that, which is another one after a restart.
//
// Prefill hands over what ends because it has all its tokens (FINISHED_LENGTH_CAPPED), and nothing
// else. Decode would wait for minutes for blocks that nobody has, so the one token must not be the
// last for another reason.
type Mooncake map[string]*Bootstrap // by the address of the instance of prefill

// Who hands over, and to whom. The members have vLLM's names.
type (
	mooncakePrefill struct {
		RemoteDecode  bool   `json:"do_remote_decode"`
		RemotePrefill bool   `json:"do_remote_prefill"`
		TransferID    string `json:"transfer_id"`
	}
	mooncakeDecode struct {
		mooncakePrefill
		EngineID  string `json:"remote_engine_id"`
		Bootstrap string `json:"remote_bootstrap_addr"`
	}
)

// Request implements Connector.
func (m Mooncake) Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	transfer := hex.EncodeToString(id[:])
	params, _ := json.Marshal(mooncakePrefill{true, false, transfer}) // strings
	r := request(prompt,
		body.Set(body.KVTransferParams, params),
		embeddings,
		body.Set(body.IgnoreEOS, "true"),
		body.Remove(body.Stop),
		body.Remove(body.StopTokenIDs))
	return r, func(ctx context.Context, answer []byte, address string, sent time.Time) (Blocks, error) {
		none := Blocks{Made: time.Now(), Cached: -1}
		b, err := body.Parse(answer)
		if err != nil || finishReason(answer) != "length" {
			return none, err
		}
		at := m[address]
		engine, err := at.engineID(ctx, sent)
		if err != nil {
			return none, fmt.Errorf("the bootstrap server (kv_bootstrap): %w", err)
		}
		kv, _ := json.Marshal(mooncakeDecode{mooncakePrefill{false, true, transfer}, engine, at.Address}) // strings
		return Blocks{kv, none.Made, cachedTokens(b, nil)}, nil
	}
}
