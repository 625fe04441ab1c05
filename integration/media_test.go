package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// Whatever members, types and uuids a part has, in whatever order: engines load what was
// checked, or the client gets 400 and no engine gets the request. Tested without a uuid and with the proxy's.
func TestMediaAreWhatEnginesLoad(t *testing.T) {
	t.Parallel()
	media := map[string][2]string{ // the forms for encoders, and the forms that a uuid makes engines accept
		"image_url":   {`{"url":"https://good.test/%d"}`, `"https://good.test/%d"`},
		"audio_url":   {`{"url":"https://good.test/%d"}`, `"https://good.test/%d"`},
		"video_url":   {`{"url":"https://good.test/%d"}`, `"https://good.test/%d"`},
		"input_audio": {`{"data":"Z29vZHRlc3Q%d","format":"wav"}`, `{"data":"Z29vZHRlc3Q%d"}`},
	}
	others := []string{"", `"image_url":"http://evil.test/"`, `"image_pil":"http://evil.test/"`, `"image_embeds":"QUJD"`, `"audio_embeds":null`, `"video_url":{"url":"http://evil.test/"}`,
		`"image_url":null`, `"image_pil":null`, `"prompt_embeds":null`, `"input_audio":{"data":"ZXZpbA==","format":"wav"}`, `"text":"x"`}
	types := []string{"", "null", "image_url", "audio_url", "input_audio", "video_url", "image_pil", "text", "image_embeds", "file", "input_image"}
	for _, options := range [][]string{{}, {"references"}} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 0, 1, modern)
			c := startCaddy(t, e.block(append(options, "media_sources data: https://good.test")...))
			n, answered := 0, 0
			for kind, values := range media {
				for _, value := range values {
					for _, other := range others {
						if strings.HasPrefix(other, `"`+kind+`"`) {
							continue
						}
						for _, typ := range types {
							n++
							for _, order := range []bool{false, true} {
								members := []string{`"` + kind + `":` + fmt.Sprintf(value, n), `"uuid":"theirs"`}
								if typ == "null" {
									members = append(members, `"type":null`)
								} else if typ != "" {
									members = append(members, `"type":"`+typ+`"`)
								}
								if other != "" && order {
									members = append(members, other)
								} else if other != "" {
									members = append([]string{other}, members...)
								}
								e.reset()
								body := chat("", text("x"), "{"+strings.Join(members, ",")+"}")
								r := c.post(t, body)
								if r.StatusCode != http.StatusOK {
									require.Equal(t, http.StatusBadRequest, r.StatusCode, "%s: %s", body, r.body)
									e.assertRequests(t, 0, 0, 0)
									continue
								}
								answered++
								only := chat("", text("x"), fmt.Sprintf(`{"%s":%s}`, kind, fmt.Sprintf(value, n)))
								require.Equal(t, answer(t, only), replyText(t, body, r), body)
								for _, engine := range e.all() {
									for _, request := range engine.Requests() {
										require.NotContains(t, string(request.Body), "evil", body)
										require.NotContains(t, string(request.Body), "theirs", body)
									}
								}
							}
						}
					}
				}
			}
			e.assertContract(t)
			assert.Greater(t, answered, 50)
		})
	}
}

// Members that can crash engines, or make them fetch any URL, need trust_clients, except where
// JSON cannot express them.
func TestMediaForTheTrusted(t *testing.T) {
	t.Parallel()
	for _, trusted := range []bool{false, true} {
		e := startEngines(t, 1, 0, 1)
		var lines []string
		if trusted {
			lines = append(lines, "trust_clients")
		}
		c := startCaddy(t, e.block(lines...))
		for _, body := range []string{
			chat("", `{"type":"image_embeds","image_embeds":"QUJD"}`),
			chat("", text("x"), `{"audio_embeds":{"audio_feature_lengths":[1]},"uuid":"u"}`),
			chat(`,"mm_processor_kwargs":{"videos":"http://evil.test/"}`, text("x")),
			chat(`,"mm_processor_kwargs":{"size":{"a":["http://evil.test/"]}}`, text("x")),
			chat(`,"mm_processor_kwargs":{"trust_remote_code":true}`, text("x")),
		} {
			r := c.post(t, body)
			assert.Equal(t, map[bool]int{false: 400, true: 200}[trusted], r.StatusCode, "%s: %s", body, r.body)
		}
		for _, body := range []string{
			chat("", text("x"), `{"type":"image_pil","image_pil":"http://evil.test/"}`),
			chat("", text("x"), `{"image_pil":"http://evil.test/","uuid":"u"}`),
			chat(`,"mm_processor_kwargs":{"use_audio_in_video":1}`, text("x")),
		} {
			assert.Equal(t, http.StatusBadRequest, c.post(t, body).StatusCode, body)
		}
		options := chat(`,"mm_processor_kwargs":{"min_pixels":4,"size":{"longest_edge":[1,2.5]},"do_resize":false,"use_audio_in_video":null}`, text("x"))
		assertAnswer(t, options, c.post(t, options))
		e.assertContract(t)
	}
}

// A trusted client may refer to media that engines have cached, in all of vLLM's forms.
func TestCachedMedia(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, modern)
	c := startCaddy(t, e.block("references", "trust_clients"))
	first := chat("", `{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"},"uuid":"u"}`)
	assertAnswer(t, first, c.post(t, first))
	for _, part := range []string{`{"type":"image_url","image_url":null,"uuid":"u"}`, `{"type":"image_url","image_url":{"url":null},"uuid":"u"}`, `{"image_url":{},"uuid":"u"}`} {
		body := chat("", part)
		assertAnswer(t, body, c.post(t, body))
	}
	e.assertContract(t)
	e.assertRequests(t, 1, 0, 4)
}

// Encoders get the chat template of the request: their model may have none.
func TestEncodersGetTheTemplate(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	const template = `"chat_template":"{{ x }}","chat_template_kwargs":{"a": 1}`
	body := chat(","+template, image("AAAA"))
	assertAnswer(t, body, c.post(t, body))
	e.assertContract(t)
	for _, engine := range []*fakevllm.Engine{e.encode[0], e.prefill[0], e.decode[0]} {
		assert.Contains(t, string(engine.Requests()[0].Body), template)
	}
}
