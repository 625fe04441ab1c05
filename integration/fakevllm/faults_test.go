package fakevllm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCutBefore(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: CutBefore, Times: 1})
	_, err := try(newRequest(t, e, chat, "r", textChat))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	assert.Len(t, e.Requests(), 1)
	assert.Empty(t, e.Cancellations(), "the engine has cut, not the client")
	accepted(t, e, post(t, e, chat, "r", textChat))
}

func TestCutMiddle(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: CutMiddle})
	a, err := try(newRequest(t, e, chat, "r", textChat))
	require.NoError(t, err)
	assert.ErrorIs(t, a.bodyErr, syscall.ECONNRESET)
	assert.Equal(t, http.StatusOK, a.status)
	length, err := strconv.Atoi(a.header.Get("Content-Length"))
	require.NoError(t, err)
	assert.Len(t, a.body, length/2)
	assert.Empty(t, e.Cancellations())
}

func TestCutMiddleOfStream(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: CutMiddle})
	a, err := try(newRequest(t, e, chat, "r", with(textChat, "stream", "true")))
	require.NoError(t, err)
	assert.ErrorIs(t, a.bodyErr, syscall.ECONNRESET)
	assert.Equal(t, http.StatusOK, a.status)
	assert.Contains(t, a.body, "\n\n", "some events are whole")
	assert.NotRegexp(t, `\n\n$`, a.body, "the last is not")
	_, err = Text([]byte(a.body), true)
	assert.ErrorContains(t, err, "no [DONE]")
}

func TestCutBetween(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: CutBetween})
	a, err := try(newRequest(t, e, chat, "r", with(textChat, "stream", "true")))
	require.NoError(t, err)
	assert.ErrorIs(t, a.bodyErr, syscall.ECONNRESET)
	begun, err := Text([]byte(a.body+"data: [DONE]\n\n"), true)
	require.NoError(t, err, "all events are whole")
	assert.NotEmpty(t, begun)
	assert.NotContains(t, a.body, "[DONE]")
}

func TestStatus(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Status, Code: 503, Message: "overloaded", Header: http.Header{"Retry-After": {"7"}}, Times: 2})
	for range 2 {
		a := post(t, e, chat, "r", textChat)
		assert.Equal(t, 503, a.status)
		assert.Equal(t, "7", a.header.Get("Retry-After"))
		assert.JSONEq(t, `{"error":{"message":"overloaded","type":"ServiceUnavailableError","param":null,"code":503}}`, a.body)
		assert.Equal(t, 200, get(t, e, "/health").status, "health checks neither fail nor count")
	}
	accepted(t, e, post(t, e, chat, "r", textChat))
}

func TestStatusDefaultsTo500(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Status})
	assert.Equal(t, 500, get(t, e, "/v1/models").status)
}

func TestGarbage(t *testing.T) {
	e := startAlone(t, Options{Role: Prefill})
	e.SetFault(Fault{Kind: Garbage})
	a := post(t, e, chat, "r", textPrefill)
	assert.Equal(t, 200, a.status)
	assert.False(t, json.Valid([]byte(a.body)))
}

func TestSlow(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Slow, Delay: 30 * time.Millisecond})
	begin := time.Now()
	accepted(t, e, post(t, e, chat, "r", textChat))
	assert.GreaterOrEqual(t, time.Since(begin), 30*time.Millisecond)
}

func TestMatch(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Status, Code: 500, Match: "poison", Times: 1})
	accepted(t, e, post(t, e, chat, "r", textChat))
	assert.Equal(t, 500, post(t, e, chat, "r", with(textChat, "user", `"poison"`)).status)
	assert.Equal(t, 200, post(t, e, chat, "r", with(textChat, "user", `"poison"`)).status, "others do not count")
}

func TestFaultDoesNotHideAWrongRequest(t *testing.T) {
	e := startAlone(t, Options{Role: Prefill})
	e.SetFault(Fault{Kind: Status, Code: 503})
	refused(t, e, post(t, e, chat, "r", textChat), http.StatusBadRequest, "kv_transfer_params of a prefill request")
}

func TestSpend(t *testing.T) {
	c := NewCluster()
	encoder, prefiller, decoder := start(t, c, Options{Role: Encode, Handles: true}), start(t, c, Options{Role: Prefill}), start(t, c, Options{Role: Decode})
	prefill := with(imagePrefill, "ec_transfer_params", member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params"))

	prefiller.SetFault(Fault{Kind: Status, Code: 500, Times: 1})
	assert.Equal(t, 500, post(t, prefiller, chat, "r", prefill).status)
	a := post(t, prefiller, chat, "r", prefill)
	accepted(t, prefiller, a)

	decode := with(imageChat, "kv_transfer_params", member(t, a, "kv_transfer_params"))
	decoder.SetFault(Fault{Kind: Status, Code: 500, Times: 1, Spend: true})
	assert.Equal(t, 500, post(t, decoder, chat, "r", decode).status)
	refused(t, decoder, post(t, decoder, chat, "r", decode), 500, "unknown or already freed kv blocks")

	prefill = with(imagePrefill, "ec_transfer_params", member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params"))
	prefiller.SetFault(Fault{Kind: CutBefore, Times: 1, Spend: true})
	_, err := try(newRequest(t, prefiller, chat, "r", prefill))
	assert.Error(t, err)
	refused(t, prefiller, post(t, prefiller, chat, "r", prefill), 500, "unknown or spent transfer handle")
}

func TestCrash(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Crash, Match: "poison"})
	idle := dial(t, e)
	accepted(t, e, post(t, e, chat, "r", textChat))

	_, err := try(newRequest(t, e, chat, "r", with(textChat, "user", `"poison"`)))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = idle.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = try(newRequest(t, e, chat, "r", textChat))
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)

	require.NoError(t, e.Restart())
	assert.Equal(t, 200, post(t, e, chat, "r", textChat).status)
	assert.Len(t, e.Requests(), 3, "reports outlive the crash")
	assert.Empty(t, e.Cancellations())
}

func TestHangUntilCleared(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Hang})
	request := postAsync(t, t.Context(), e, "r", textChat)
	health := make(chan error, 1)
	go func() {
		r, err := http.Get(e.URL() + "/health")
		if err == nil {
			err = r.Body.Close()
		}
		health <- err
	}()
	eventually(t, func() bool { return e.HealthChecks() == 1 && e.InFlight() == 1 })

	select {
	case <-request:
		assert.Fail(t, "the request was answered")
	case <-health:
		assert.Fail(t, "the health check was answered")
	case <-time.After(20 * time.Millisecond):
	}
	e.SetFault(Fault{})
	assert.NoError(t, await(t, request))
	assert.NoError(t, await(t, health))
}

func TestHangOfSomeRequestsSparesHealth(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Hang, Match: "hello"})
	postAsync(t, t.Context(), e, "r", textChat)
	assert.Equal(t, 200, get(t, e, "/health").status)
}

func TestHungHealthCheckEndsWithItsClient(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Hang})
	c := dial(t, e)
	_, err := io.WriteString(c, "GET /health HTTP/1.1\r\nHost: engine\r\n\r\n")
	require.NoError(t, err)
	eventually(t, func() bool { return e.HealthChecks() == 1 })
	require.NoError(t, c.CloseWrite())
	_, err = c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET, "without an answer")
	assert.Empty(t, e.Cancellations(), "health checks are no requests")
}

func TestCancellation(t *testing.T) {
	right := map[Role]struct{ id, body string }{
		Encode: {"r:0:abcdef", imageEncode}, Prefill: {"r", textPrefill}, Decode: {"r", textChat},
	}
	tests := []struct {
		name    string
		options Options
		fault   Fault
	}{
		{"encode", Options{Role: Encode, Delay: time.Hour}, Fault{}},
		{"prefill", Options{Role: Prefill, Delay: time.Hour}, Fault{}},
		{"decode", Options{Role: Decode, Delay: time.Hour}, Fault{}},
		{"hang", Options{Role: Decode}, Fault{Kind: Hang}},
		{"slow", Options{Role: Decode}, Fault{Kind: Slow, Delay: time.Hour}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, test.options)
			e.SetFault(test.fault)
			request := right[test.options.Role]
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := postAsync(t, ctx, e, request.id, request.body)
			assert.Empty(t, e.Cancellations())

			left := time.Now()
			cancel()
			assert.ErrorIs(t, await(t, done), context.Canceled)
			eventually(t, func() bool { return e.InFlight() == 0 })
			require.Len(t, e.Cancellations(), 1)
			assert.Equal(t, request.id, e.Cancellations()[0].ID)
			assert.Equal(t, "before", e.Cancellations()[0].Stage)
			assert.Less(t, e.Cancellations()[0].At.Sub(left), patience)

			e.Reset()
			assert.Empty(t, e.Cancellations())
		})
	}
}

func TestCancellationDuringStream(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, ChunkDelay: 10 * time.Millisecond})
	long := `{"stream":true,"prompt":"` + longText + `"}`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	response, err := client.Do(newRequest(t, e, completions, "r", long).WithContext(ctx))
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	_, err = response.Body.Read(make([]byte, 1))
	require.NoError(t, err)

	cancel()
	eventually(t, func() bool { return e.InFlight() == 0 })
	require.Len(t, e.Cancellations(), 1)
	assert.Equal(t, "during", e.Cancellations()[0].Stage)
}

func TestAnsweredRequestIsNoCancellation(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	for range 50 {
		post(t, e, chat, "r", with(textChat, "stream", "true"))
	}
	e.Close()
	assert.Empty(t, e.Cancellations())
	assert.Empty(t, e.Refusals())
}

func TestCancelledEncodeStoresNothing(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Delay: time.Hour}), start(t, c, Options{Role: Decode})
	ctx, cancel := context.WithCancel(t.Context())
	done := postAsync(t, ctx, encoder, "r:0:abcdef", imageEncode)
	cancel()
	assert.True(t, errors.Is(await(t, done), context.Canceled))
	eventually(t, func() bool { return encoder.InFlight() == 0 })
	refused(t, decoder, post(t, decoder, chat, "r", imageChat), 500, "multimodal embedding missing")
}
