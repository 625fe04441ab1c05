package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// modern makes engines behave as vLLM 0.31.0.
func modern(o *fakevllm.Options) { o.Modern, o.VaryShapes = true, true }

// medley is a unique request with media of all kinds, some of them twice.
func medley(n int) string {
	name := fmt.Sprintf("%08d", n)
	parts := []string{text("request " + name), image(name + data(n))}
	if n%2 == 0 {
		parts = append(parts, image("Twice"+name), text("and again"), image("Twice"+name))
	}
	if n%3 == 0 {
		parts = append(parts, fmt.Sprintf(`{"type":"video_url","video_url":{"url":"https://example.com/%s.mp4"}}`, name))
	}
	if n%5 == 0 {
		parts = append(parts, fmt.Sprintf(`{"type":"input_audio","input_audio":{"data":"%s","format":"wav"}}`, name))
	}
	body := chat(fmt.Sprintf(`,"user":"u%d"`, n), parts...)
	if n%2 == 1 {
		body = stream(body)
	}
	return body
}

// Engines of vLLM 0.31.0 get references, whichever form encoders report them in, and
// clients get the right answers.
func TestReferences(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fakevllm.Options){
		"shared":       func(*fakevllm.Options) {},
		"handles":      func(o *fakevllm.Options) { o.Handles = true },
		"no positions": func(o *fakevllm.Options) { o.NoItemIndices = true },
		"no shapes":    func(o *fakevllm.Options) { o.NoMetadata = true },
	} {
		for topology, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
			for _, options := range [][]string{{"references"}, {"references", "encode_batch 3"}, {"encode_batch 3"}} {
				t.Run(fmt.Sprintf("%s, %s, %v", name, topology, options), func(t *testing.T) {
					t.Parallel()
					e := startEngines(t, n[0], n[1], n[2], modern, change)
					c := startCaddy(t, e.block(options...))
					c.crowd(t, c.client(t, true), 16, 4, medley)
					e.assertContract(t)
					c.assertNoLeaks(t)
				})
			}
		}
	}
}

// An item is sent once, equal media are encoded once, and images are batched.
func TestReferencesSaveBytes(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 1, modern)
	c := startCaddy(t, e.block("references", "encode_batch 2"))
	big := strings.Repeat("QUJD", 50_000)
	body := chat("", image("A"+big), image("B"+big), image("A"+big), image("C"+big), image("D"+big), image("E"+big))
	assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
	e.assertContract(t)
	e.assertRequests(t, 3, 1, 1) // five images, at most two in a batch
	got := e.prefill[0].Requests()[0].Body
	assert.Less(t, len(got), 5_000)
	assert.Equal(t, 6, bytes.Count(got, []byte(`"type":"image_embeds"`)))
	got = e.decode[0].Requests()[0].Body
	assert.Equal(t, 6, bytes.Count(got, []byte(`"type":"image_url"`)), "decode may have to compute a part of the prompt, and has no embeddings")
	assert.NotContains(t, string(got), "uuid")
}

// uuids returns the uuids of the parts that encoders have got.
func (e *engines) uuids() (all []string) {
	for _, engine := range e.encode {
		for _, r := range engine.Requests() {
			for _, m := range regexp.MustCompile(`"uuid":"([^"]*)"`).FindAllSubmatch(r.Body, -1) {
				all = append(all, string(m[1]))
			}
		}
	}
	return all
}

// The same image has the same uuid for equal salts, and other ones otherwise.
func TestUUIDSalt(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern)
	c := startCaddy(t, e.block("references", "uuid_salt {http.request.header.X-Tenant}"))
	body := chat("", image("AAAA"))
	for _, tenant := range []string{"a", "b", "a"} {
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body, "X-Tenant: "+tenant))
	}
	e.assertContract(t)
	got := e.uuids()
	require.Len(t, got, 3)
	assert.Equal(t, got[0], got[2])
	assert.NotEqual(t, got[0], got[1])
	assert.Regexp(t, "^[0-9a-f]{64}$", got[0])
}

// A client's own uuid counts only if the client is trusted.
func TestUUIDsOfClients(t *testing.T) {
	t.Parallel()
	body := chat("", `{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"},"uuid":"my \"own\""}`)
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprint(trusted), func(t *testing.T) {
			e := startEngines(t, 1, 1, 1, modern)
			lines := []string{"references"}
			if trusted {
				lines = append(lines, "trust_clients")
			}
			c := startCaddy(t, e.block(lines...))
			assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
			e.assertContract(t)
			for _, engine := range e.all() {
				own, err := json.Marshal(`my "own"`)
				require.NoError(t, err)
				assert.Equal(t, trusted, bytes.Contains(engine.Requests()[0].Body, own), engine.Name())
			}
		})
	}
}

// What decode could not get from other engines is made again, also for a stream: embeddings for
// which encoders have answered with ec_transfer_params, and KV blocks. If decode needs neither,
// another instance of it is tried; a 500 is passed on if there is no other.
func TestLostOnTheWay(t *testing.T) {
	t.Parallel()
	lost := fault{Kind: fakevllm.Status, Code: 500, Spend: true, Times: 1, Message: "could not be delivered"}
	for topology, n := range map[string][3]int{"E+PD": {1, 0, 2}, "E+P+D": {1, 2, 2}, "one of each": {1, 1, 1}, "one of both": {1, 0, 1}} {
		for name, tc := range map[string]struct {
			engines func(*fakevllm.Options)
			options []string
			encodes int // of three items, if decode fails once for each of two requests
		}{
			"shared storage": {func(*fakevllm.Options) {}, nil, 3},
			"announced":      {modern, nil, 6},
			"references":     {modern, []string{"references"}, 6},
			"handles":        {withHandles, nil, 6},
			"both":           {withHandles, []string{"references"}, 6},
		} {
			t.Run(topology+", "+name, func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, n[0], n[1], n[2], tc.engines)
				c := startCaddy(t, e.block(append(tc.options, "decode lb_policy first")...))
				alone := n[1] == 0 && n[2] == 1 && name == "shared storage"
				for _, body := range []string{chat("", image("AAAA"), image("BBBB")), stream(chat("", image("CCCC")))} {
					e.decode[0].SetFault(lost)
					r := c.do(t, http.MethodPost, chatPath, body)
					if alone {
						assert.Equal(t, http.StatusInternalServerError, r.StatusCode)
						assert.Equal(t, lost.Message, r.apiError(t).str("message"))
					} else {
						assertAnswer(t, body, r)
					}
				}
				e.assertContract(t)
				if !alone {
					e.assertRequests(t, tc.encodes, 2*2*min(1, n[1]), 2*2)
				}
			})
		}
	}
}

func withHandles(o *fakevllm.Options) {
	modern(o)
	o.Handles = true
}

// An encoder whose answer does not name its items has failed.
func TestAmbiguousEncoder(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern)
	c := startCaddy(t, e.block("references"))
	e.encode[0].SetFault(fault{Kind: fakevllm.Garbage})
	r := c.do(t, http.MethodPost, chatPath, chat("", image("AAAA")))
	assert.Equal(t, http.StatusBadGateway, r.StatusCode)
	assert.Equal(t, "encode_failed", r.apiError(t).str("code"))
}

// If an encoder rejects a batch, the error does not name an image.
func TestBatchIsRefused(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern)
	c := startCaddy(t, e.block("encode_batch 2"))
	e.encode[0].SetFault(fault{Kind: fakevllm.Status, Code: 400, Message: "one is broken"})
	for images, param := range map[int]any{1: "messages[0].content[0]", 2: nil} {
		r := c.do(t, http.MethodPost, chatPath, chat("", []string{image("AAAA"), image("BBBB")}[:images]...))
		assert.Equal(t, http.StatusBadRequest, r.StatusCode)
		assert.Equal(t, param, r.apiError(t)["param"])
	}
}

// Trusted clients may give different media the same uuid, at their own risk: all media are
// still sent.
func TestOneUUIDForTwo(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern)
	c := startCaddy(t, e.block("references", "trust_clients"))
	named := func(data string) string {
		return fmt.Sprintf(`{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"},"uuid":"one"}`, data)
	}
	c.do(t, http.MethodPost, chatPath, chat("", named("AAAA"), named("BBBB")))
	var got []byte
	for _, r := range e.encode[0].Requests() {
		got = append(got, r.Body...)
	}
	assert.Contains(t, string(got), "AAAA")
	assert.Contains(t, string(got), "BBBB")
}

// Decode gets embeddings only if its engines consume them too.
func TestDecodeHasEmbeddings(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, modern, func(o *fakevllm.Options) { o.Handles, o.KeepHandles = true, o.Role == fakevllm.Decode })
	for _, has := range []bool{false, true} {
		lines := []string{"references"}
		if has {
			lines = append(lines, "decode_has_embeddings")
		}
		c := startCaddy(t, e.block(lines...))
		e.reset()
		body := chat("", image(fmt.Sprintf("AAA%v", has)))
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
		e.assertContract(t)
		got := e.decode[0].Requests()[0].Body
		assert.Equal(t, has, bytes.Contains(got, []byte(`"ec_transfer_params"`)))
		assert.Equal(t, has, bytes.Contains(got, []byte(`"image_embeds"`)))
	}
}

// An engine without the embedding crashes on a reference to it. The next attempt sends the
// media, so that a request crashes at most one instance. An answer of 500 is handled in the same way.
func TestConsumerLacksAnEmbedding(t *testing.T) {
	t.Parallel()
	for topology, n := range map[string][3]int{"E+PD": {1, 0, 3}, "E+P+D": {1, 3, 1}} {
		for _, dies := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, dies %v", topology, dies), func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, n[0], n[1], n[2], modern, func(o *fakevllm.Options) { o.ECExample = true })
				patient := "health_fails 1000"
				c := startCaddy(t, e.block("references", "retries 2", "encode "+patient, "prefill "+patient, "decode "+patient))
				consumers := e.of(consuming(n[1]))
				if dies {
					e.encode[0].SetFault(fault{Kind: fakevllm.Forget})
				} else {
					for _, engine := range consumers {
						engine.SetFault(fault{Kind: fakevllm.Status, Code: 500, Match: "image_embeds"})
					}
				}
				alive := len(consumers)
				for i, body := range []string{chat("", image("AAAA"), image("BBBB")), stream(chat("", image("CCCC")))} {
					e.reset()
					assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
					referred := 0
					for _, engine := range consumers {
						for _, r := range engine.Requests() {
							referred += min(1, bytes.Count(r.Body, []byte(`"image_embeds"`)))
						}
					}
					assert.Equal(t, 1, referred, "%d", i)
					if dies {
						alive--
					}
				}
				living := 0
				for _, engine := range consumers {
					if r, err := http.Get(engine.URL() + "/health"); err == nil {
						_ = r.Body.Close()
						living++
					}
				}
				assert.Equal(t, alive, living)
				e.assertContract(t)
			})
		}
	}
}

// A video whose sound is used is two items for an engine: two transfers, two entries, and
// with vLLM 0.33 a reference to both.
func TestSoundOfVideos(t *testing.T) {
	t.Parallel()
	const video = `{"type":"video_url","video_url":{"url":"https://example.com/x.mp4"}}`
	const sound = `,"mm_processor_kwargs":{"use_audio_in_video":true}`
	for topology, n := range map[string][3]int{"E+PD": {1, 0, 1}, "E+P+D": {1, 1, 1}} {
		for engines, change := range map[string]func(*fakevllm.Options){
			"before 0.33": func(o *fakevllm.Options) { o.Timing = true },
			"0.33":        func(o *fakevllm.Options) { o.Timing, o.Modalities = true, true },
			"no timing":   func(o *fakevllm.Options) { o.Modalities = true },
			"handles":     func(o *fakevllm.Options) { o.Timing, o.Modalities, o.Handles = true, true, true },
		} {
			for name, options := range map[string][]string{"plain": {}, "references": {"references"}, "push": {"push"}, "both": {"references", "push"}} {
				t.Run(topology+", "+engines+", "+name, func(t *testing.T) {
					t.Parallel()
					role := consuming(n[1])
					e := startEngines(t, n[0], n[1], n[2], modern, consumers(role, 1), change)
					var lines []string
					for _, option := range options {
						if option == "push" {
							option = e.pushing(role, 1)
						}
						lines = append(lines, option)
					}
					c := startCaddy(t, e.block(lines...))
					for _, parts := range [][]string{{video}, {text("x"), image("AAAA"), video}} {
						e.reset()
						body := chat(sound, parts...)
						assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
						e.assertContract(t)
						got := e.of(role)[0].Requests()[0].Body
						referred := slices.Contains(options, "references") && (engines == "0.33" || engines == "handles")
						assert.Equal(t, referred, bytes.Contains(got, []byte(`"audio_embeds":{"audio_feature_lengths":`)), "%s", got)
						if slices.Contains(options, "push") {
							assert.Equal(t, len(parts)/2+2, bytes.Count(got, []byte(`"transfer_id"`)), "%s", got)
						}
					}
				})
			}
		}
	}
}

// A video is replaced by a reference only if the encoder reports the times of its frames; the
// other members of the part are always kept.
func TestReferencesKeepTheAnswer(t *testing.T) {
	t.Parallel()
	for _, timing := range []bool{false, true} {
		e := startEngines(t, 1, 0, 1, modern, func(o *fakevllm.Options) { o.Timing = timing })
		c := startCaddy(t, e.block("references", "media_sources https://example.com"))
		body := chat("", `{"type":"video_url","video_url":{"url":"https://example.com/x.mp4"}}`, `{"image_url":"https://example.com/x.png","cache_control":{"type":"x"}}`)
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
		e.assertContract(t)
		got := e.decode[0].Requests()[0].Body
		for _, reference := range []string{`"video_embeds":\{[^}]*\},"uuid"`, `"type":"image_embeds","image_embeds":\{"image_grid_thw":[^}]*\},"cache_control":\{"type":"x"\},"uuid"`} {
			assert.Equal(t, timing, regexp.MustCompile(reference).Match(got), "%s: %s", reference, got)
		}
		refused := chat("", `{"type":"video_url","video_url":{"url":"data:video/mp4;base64,AAAA"}}`)
		assert.Equal(t, "media_source", c.post(t, refused).apiError(t)["code"])
	}
}

// The same audio in two formats is two items: vLLM makes a data URL with the format.
func TestFormatsOfAudio(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern)
	c := startCaddy(t, e.block("references"))
	for _, format := range []string{"wav", "wav;base64,RVZJTA==", "flac", "wav"} {
		body := chat("", fmt.Sprintf(`{"type":"input_audio","input_audio":{"data":"QUJD","format":"%s"}}`, format))
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
	}
	e.assertContract(t)
	got := e.uuids()
	require.Len(t, got, 4)
	assert.Equal(t, got[0], got[3])
	assert.Len(t, slices.Compact(slices.Sorted(slices.Values(got))), 3)
}

// consumers gives the engines that consume embeddings addresses to push to.
func consumers(role fakevllm.Role, ranks int) func(*fakevllm.Options) {
	n := 0
	return func(o *fakevllm.Options) {
		if o.Role == role && o.Modern {
			for rank := range ranks {
				o.ConsumerZMQ = append(o.ConsumerZMQ, fmt.Sprintf("tcp://%s%d:%d", role, n, 14579+rank))
			}
			n++
		}
	}
}

// pushing is the option with the addresses of the consumers.
func (e *engines) pushing(role fakevllm.Role, ranks int) string {
	block := "ec_consumers {\n"
	for n, engine := range e.of(role) {
		block += engine.Addr()
		for rank := range ranks {
			block += fmt.Sprintf(" tcp://%s%d:%d", role, n, 14579+rank)
		}
		block += "\n"
	}
	return block + "}"
}

// everything returns all options for engines of vLLM 0.31.0, and those engines.
func everything(t *testing.T, encode, prefill, decode int, change ...func(*fakevllm.Options)) (e *engines, options []string) {
	t.Helper()
	role := consuming(prefill)
	all := append(change, modern, consumers(role, 2), func(o *fakevllm.Options) { o.Handles, o.KeepHandles = true, prefill > 0 && o.Role == fakevllm.Decode })
	e = startEngines(t, encode, prefill, decode, all...)
	if prefill > 0 {
		options = append(options, "decode_has_embeddings")
	}
	return e, append(options, "references", "encode_batch 3", "uuid_salt {http.request.header.Authorization}", e.pushing(role, 2))
}

// Encoders push embeddings to the instance and rank that then consumes them.
func TestPush(t *testing.T) {
	t.Parallel()
	for topology, n := range map[string][3]int{"E+PD": {2, 0, 2}, "E+P+D": {2, 2, 2}} {
		for _, ranks := range []int{1, 3} {
			for _, options := range [][]string{{}, {"references"}, {"references", "encode_batch 3"}, {"references", "encode_limit 2", "prefill_limit 3", "decode_limit 3"}} {
				t.Run(fmt.Sprintf("%s, %d ranks, %v", topology, ranks, options), func(t *testing.T) {
					t.Parallel()
					role := consuming(n[1])
					e := startEngines(t, n[0], n[1], n[2], modern, consumers(role, ranks))
					c := startCaddy(t, e.block(append(options, e.pushing(role, ranks))...))
					c.crowd(t, c.client(t, true), 16, 3, medley)
					e.assertContract(t)
					for _, engine := range e.of(role) {
						assert.NotEmpty(t, engine.Requests(), "embeddings go to one instance only")
					}
					for _, engine := range e.encode {
						for _, r := range engine.Requests() {
							assert.Contains(t, string(r.Body), `"ec_transfer_params":{"consumer_zmq":"tcp://`)
						}
					}
					c.assertNoLeaks(t)
				})
			}
		}
	}
}

// If a consumer dies after embeddings were pushed to it, no request fails: they are made
// again, for another consumer.
func TestConsumerDies(t *testing.T) {
	t.Parallel()
	for topology, n := range map[string][3]int{"E+PD": {1, 0, 2}, "E+P+D": {1, 2, 1}} {
		for name, begin := range map[string]func(*fakevllm.Engine){
			"refuses": (*fakevllm.Engine).Kill,
			"breaks":  func(e *fakevllm.Engine) { e.SetFault(fault{Kind: fakevllm.CutBefore, Spend: true}) },
			"says 503": func(e *fakevllm.Engine) {
				e.SetFault(fault{Kind: fakevllm.Status, Code: 503, Spend: true, Message: "no"})
			},
			"lost that": func(e *fakevllm.Engine) {
				e.SetFault(fault{Kind: fakevllm.Status, Code: 500, Spend: true, Message: "no"})
			},
		} {
			t.Run(topology+", "+name, func(t *testing.T) {
				t.Parallel()
				role := consuming(n[1])
				e := startEngines(t, n[0], n[1], n[2], modern, consumers(role, 2))
				patient := "health_fails 1000"
				c := startCaddy(t, e.block("references", "encode "+patient, "prefill "+patient, "decode "+patient,
					string(role)+" lb_policy first", string(role)+" "+noKeepalive, "encode_limit 8", e.pushing(role, 2)))
				begin(e.of(role)[0])
				for _, body := range []string{chat("", image("AAAA"), image("BBBB")), stream(chat("", image("CCCC")))} {
					assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
				}
				encoded, _, _ := e.requests()
				assert.Equal(t, 2*3, encoded, "embeddings are made for each consumer")
				e.assertContract(t)
				c.assertNoLeaks(t)
			})
		}
	}
}
