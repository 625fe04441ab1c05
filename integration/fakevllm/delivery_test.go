package fakevllm

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Transfer ids, and the control address that the tests' consumers have.
const (
	id1, id2, id3 = "00000000000000000000000000000001", "00000000000000000000000000000002", "0000000000000000000000000000000f"
	zmq, zmq1     = "tcp://127.0.0.1:14579", "tcp://127.0.0.1:14580"
)

// deliver is an encode request that names a consumer.
func deliver(body, consumer string, ids ...string) string {
	items := make([]string, len(ids))
	for n, id := range ids {
		items[n] = `{"transfer_id":"` + id + `"}`
	}
	return with(body, "ec_transfer_params", `{"consumer_zmq":"`+consumer+`","ec_items":[`+strings.Join(items, ",")+`]}`)
}

// delivered is a chat with ec_items, given as alternating hashes and ids.
func delivered(body string, pairs ...string) string {
	var items []string
	for n := 0; n < len(pairs); n += 2 {
		items = append(items, `{"mm_hash":"`+pairs[n]+`","transfer_id":"`+pairs[n+1]+`"}`)
	}
	return with(body, "ec_transfer_params", `{"ec_items":[`+strings.Join(items, ",")+`]}`)
}

func TestEncodeForAConsumer(t *testing.T) {
	bad, failed := http.StatusBadRequest, http.StatusInternalServerError
	params := func(value string) string { return with(encodeParts(partA), "ec_transfer_params", value) }
	tests := []struct {
		name, body string
		code       int
		message    string
	}{
		{"right", deliver(encodeParts(partA), zmq1, id1), 0, ""},
		{"an id for each of equal items", deliver(encodeParts(partA, partA), zmq, id1, id2), 0, ""},
		{"not an object", params(`[]`), bad, "not a JSON object"},
		{"no consumer", params(`{"ec_items":[{"transfer_id":"` + id1 + `"}]}`), bad, "want the members"},
		{"no items", params(`{"consumer_zmq":"` + zmq + `"}`), bad, "want the members"},
		{"more", params(`{"consumer_zmq":"` + zmq + `","ec_items":[{"transfer_id":"` + id1 + `"}],"x":1}`), bad, "want the members"},
		{"consumer not a string", params(`{"consumer_zmq":1,"ec_items":[{"transfer_id":"` + id1 + `"}]}`), bad, "consumer_zmq must be a non-empty string"},
		{"items not a list", params(`{"consumer_zmq":"` + zmq + `","ec_items":{}}`), bad, "want a list of 1"},
		{"fewer items", deliver(encodeParts(partA, partB), zmq, id1), bad, "want a list of 2"},
		{"more items", deliver(encodeParts(partA), zmq, id1, id2), bad, "want a list of 1"},
		{"item not an object", params(`{"consumer_zmq":"` + zmq + `","ec_items":["` + id1 + `"]}`), bad, "ec_items[0]: not a JSON object"},
		{"more in an item", params(`{"consumer_zmq":"` + zmq + `","ec_items":[{"transfer_id":"` + id1 + `","mm_hash":"a"}]}`), bad, "ec_items[0]: want the members"},
		{"short id", deliver(encodeParts(partA), zmq, id1[1:]), bad, "must be 32 hex digits"},
		{"id in upper case", deliver(encodeParts(partA), zmq, strings.ToUpper(id3)), bad, "must be 32 hex digits"},
		{"unknown consumer", deliver(encodeParts(partA), "tcp://other:1", id1), failed, "no consumer at tcp://other:1"},
		{"one id twice", deliver(encodeParts(partA, partB), zmq, id1, id1), failed, "transfer id used before"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			encoder := start(t, c, Options{Role: Encode, Modern: true})
			start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq, zmq1}})
			a := post(t, encoder, chat, "r:0:abcdef", test.body)
			if test.message == "" {
				accepted(t, encoder, a)
				return
			}
			refused(t, encoder, a, test.code, test.message)
		})
	}
}

func TestTransferIDServesOneAttempt(t *testing.T) {
	c := NewCluster()
	first, second := start(t, c, Options{Role: Encode, Modern: true}), start(t, c, Options{Role: Encode, Modern: true})
	start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq}})
	body := deliver(encodeParts(partA), zmq, id1)
	first.SetFault(Fault{Kind: Status})
	assert.Equal(t, http.StatusInternalServerError, post(t, first, chat, "r:0:abcdef", body).status)
	refused(t, second, post(t, second, chat, "r:0:abcdef", body), http.StatusInternalServerError, "transfer id used before: "+id1)
}

func TestDeliveries(t *testing.T) {
	a, b := hashOf(t, partA), hashOf(t, partB)
	abc := encodeParts(partA, partB, partA)
	tests := []struct{ name, body, message string }{
		{"references", delivered(chatOf(refA, refB, refA), a, id1, b, id2, a, id3), ""},
		{"media", delivered(chatOf(partA, partB, partA), a, id1, b, id2, a, id3), ""},
		{"both", delivered(chatOf(refA, refB), a, id1, b, id2), ""},
		{"ids of equal items in another order", delivered(chatOf(refA, refA), a, id3, a, id1), ""},
		{"none", chatOf(refA), "item 0 (image_url) has no transfer id in ec_items"},
		{"null", with(chatOf(refA), "ec_transfer_params", `null`), "item 0 (image_url) has no transfer id in ec_items"},
		{"empty list", delivered(chatOf(refA)), "ec_items: want a list that is not empty"},
		{"not a list", with(chatOf(refA), "ec_transfer_params", `{"ec_items":{}}`), "ec_items: want a list"},
		{"more in an item", with(chatOf(refA), "ec_transfer_params", `{"ec_items":[{"mm_hash":"`+a+`","transfer_id":"`+id1+`","x":1}]}`), "ec_items[0]: want the members"},
		{"encoder's item", with(chatOf(refA), "ec_transfer_params", `{"ec_items":[{"transfer_id":"`+id1+`"}]}`), "ec_items[0]: want the members"},
		{"encoder's consumer", with(chatOf(refA), "ec_transfer_params", `{"consumer_zmq":"`+zmq+`"}`), "consumer_zmq: not a JSON object"},
		{"one for equal items", delivered(chatOf(refA, refA), a, id1), "item 1 (image_url) has no transfer id in ec_items"},
		{"one id twice", delivered(chatOf(refA, refA), a, id1, a, id1), "unknown or spent transfer id: " + id1},
		{"unknown id", delivered(chatOf(refA), a, strings.Replace(id1, "0", "a", 1)), "unknown or spent transfer id"},
		{"another item's id", delivered(chatOf(refA), a, id2), "transfer id " + id2 + " is of " + b},
		{"uuid for hash", delivered(chatOf(refA), "ua", id1), "is of " + a + ", not of ua"},
		{"other order", delivered(chatOf(refA, refB), b, id2, a, id1), "no item of this request, or not in their order"},
		{"too many", delivered(chatOf(refA), a, id1, b, id2), b + " is no item of this request"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			encoder := start(t, c, Options{Role: Encode, Modern: true})
			decoder := start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq}})
			encodeOne(t, encoder, deliver(abc, zmq, id1, id2, id3))
			got := post(t, decoder, chat, "r", test.body)
			if test.message == "" {
				accepted(t, decoder, got)
				return
			}
			refused(t, decoder, got, http.StatusInternalServerError, test.message)
		})
	}
}

func TestDeliveryKeysWithoutIndices(t *testing.T) {
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Modern: true, NoItemIndices: true})
	prefiller := start(t, c, Options{Role: Prefill, Modern: true, ConsumerZMQ: []string{zmq}})
	encodeOne(t, encoder, deliver(encodeParts(partA), zmq, id1))
	accepted(t, prefiller, post(t, prefiller, chat, "r", prefillOf(delivered(chatOf(refA), "ua", id1))))
}

func TestDeliveryServesOnceAndOneConsumer(t *testing.T) {
	c, hash := NewCluster(), hashOf(t, partA)
	encoder := start(t, c, Options{Role: Encode, Modern: true})
	decoder := start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq}})
	other := start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq1}})
	failed, body := http.StatusInternalServerError, delivered(chatOf(refA), hash, id1)
	refused(t, decoder, post(t, decoder, chat, "r", chatOf(refA)), failed, "no embedding for uuid")
	decoder.Reset()
	encodeOne(t, encoder, deliver(encodeParts(partA, partA, partA), zmq, id1, id2, id3))

	accepted(t, decoder, post(t, decoder, chat, "r", body))
	refused(t, decoder, post(t, decoder, chat, "r", body), failed, "unknown or spent transfer id: "+id1)
	refused(t, other, post(t, other, chat, "r", delivered(chatOf(refA), hash, id2)), failed, "went to another consumer: "+zmq)

	// A consumer that fails has received its embeddings.
	decoder.SetFault(Fault{Kind: Status, Code: failed, Message: "embedding could not be delivered", Times: 1, Spend: true})
	body = delivered(chatOf(refA), hash, id3)
	assert.Contains(t, post(t, decoder, chat, "r", body).body, "embedding could not be delivered")
	refused(t, decoder, post(t, decoder, chat, "r", body), failed, "unknown or spent transfer id: "+id3)
}

func TestDeliveryWithHandles(t *testing.T) {
	c, hash := NewCluster(), hashOf(t, partA)
	encoder := start(t, c, Options{Role: Encode, Modern: true, Handles: true})
	decoder := start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq}})
	ec := member(t, encodeOne(t, encoder, deliver(encodeParts(partA), zmq, id1)), "ec_transfer_params")
	both := strings.TrimSuffix(ec, "}") + `,"ec_items":[{"mm_hash":"` + hash + `","transfer_id":"` + id1 + `"}]}`
	accepted(t, decoder, post(t, decoder, chat, "r", with(chatOf(refA), "ec_transfer_params", both)))

	ec = member(t, encodeOne(t, encoder, deliver(encodeParts(partA), zmq, id2)), "ec_transfer_params")
	refused(t, decoder, post(t, decoder, chat, "r", with(chatOf(refA), "ec_transfer_params", ec)), http.StatusInternalServerError, "has no transfer id")
	refused(t, decoder, post(t, decoder, chat, "r", delivered(chatOf(refA), hash, id2)), http.StatusInternalServerError, "unknown or spent transfer handle")
}

func TestDataParallelRank(t *testing.T) {
	hash := hashOf(t, partA)
	tests := []struct {
		name    string
		ranks   []string // of the consumer
		to      string   // the address that the encoder delivers to, if any
		header  []string
		message string
	}{
		{"first", []string{zmq, zmq1}, zmq, []string{"0"}, ""},
		{"second", []string{zmq, zmq1}, zmq1, []string{"1"}, ""},
		{"not delivered", []string{zmq, zmq1}, "", nil, ""},
		{"only one", []string{zmq}, zmq, nil, ""},
		{"missing", []string{zmq, zmq1}, zmq, nil, `must be ["0"]`},
		{"wrong", []string{zmq, zmq1}, zmq, []string{"1"}, `must be ["0"], where the embeddings are, got ["1"]`},
		{"twice", []string{zmq, zmq1}, zmq, []string{"0", "0"}, `must be ["0"]`},
		{"needless", []string{zmq, zmq1}, "", []string{"0"}, "must not reach an engine"},
		{"needless for only one", []string{zmq}, zmq, []string{"0"}, "must not reach an engine"},
	}
	for _, role := range []Role{Prefill, Decode} {
		for _, test := range tests {
			t.Run(string(role)+" "+test.name, func(t *testing.T) {
				c := NewCluster()
				encoder := start(t, c, Options{Role: Encode, Modern: true})
				consumer := start(t, c, Options{Role: role, Modern: true, ConsumerZMQ: test.ranks})
				encode, body := encodeParts(partA), chatOf(refA)
				if test.to != "" {
					encode, body = deliver(encode, test.to, id1), delivered(body, hash, id1)
				}
				encodeOne(t, encoder, encode)
				if role == Prefill {
					body = prefillOf(body)
				}
				r := newRequest(t, consumer, chat, "r", body)
				r.Header[rankHeader] = test.header
				a := do(t, r)
				if test.message == "" {
					accepted(t, consumer, a)
					return
				}
				refused(t, consumer, a, http.StatusBadRequest, test.message)
			})
		}
	}
}

// Prefill has consumed at one of its ranks; decode must not get the rank header.
func TestRankIsOfThePrefill(t *testing.T) {
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Modern: true})
	prefiller := start(t, c, Options{Role: Prefill, Modern: true, ConsumerZMQ: []string{zmq, zmq1}})
	decoder := start(t, c, Options{Role: Decode, Modern: true, KeepHandles: true})
	encodeOne(t, encoder, deliver(encodeParts(partA), zmq1, id1))
	body := delivered(chatOf(refA), hashOf(t, partA), id1)

	r := newRequest(t, prefiller, chat, "r", prefillOf(body))
	r.Header.Set(rankHeader, "1")
	kv := member(t, do(t, r), "kv_transfer_params")
	a := post(t, decoder, chat, "r", with(body, "kv_transfer_params", kv))
	accepted(t, decoder, a)
	assert.Equal(t, answerTo(t, chatOf(partPlain)), textOf(t, a, false))
}

// All embeddings of a request are on one rank.
func TestEmbeddingsAtTwoRanks(t *testing.T) {
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Modern: true})
	decoder := start(t, c, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq, zmq1}})
	encodeOne(t, encoder, deliver(encodeParts(partA), zmq, id1))
	encodeOne(t, encoder, deliver(encodeParts(partB), zmq1, id2))
	r := newRequest(t, decoder, chat, "r", delivered(chatOf(refA, refB), hashOf(t, partA), id1, hashOf(t, partB), id2))
	r.Header.Set(rankHeader, "0")
	refused(t, decoder, do(t, r), http.StatusBadRequest, "where the embeddings are")
}

func TestRankWithUnreadableTransfers(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, Modern: true, ConsumerZMQ: []string{zmq, zmq1}})
	for items, message := range map[string]string{
		`{}`: "want a list",
		`[{"mm_hash":"a","transfer_id":"` + id1 + `"}]`: "unknown or spent transfer id",
	} {
		body := with(chatOf(refA), "ec_transfer_params", `{"ec_items":`+items+`}`)
		refused(t, e, post(t, e, chat, "r", strings.Replace(body, refA, `{"image_embeds":"AA"}`, 1)), http.StatusInternalServerError, message)
	}
}
