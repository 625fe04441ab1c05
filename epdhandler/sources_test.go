package epdhandler

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

func TestMediaSources(t *testing.T) {
	sources := []string{"data:", "https://*.example.com", "http://media.test", "file:"}
	h := new(Handler)
	for _, s := range sources {
		from, err := parseSource(s)
		require.NoError(t, err)
		h.sources = append(h.sources, from)
	}
	for url, want := range map[string]bool{
		"data:image/png;base64,AAAA":        true,
		"DATA:image/png;base64,AAAA":        true,
		"https://a.example.com/x.png":       true,
		"https://A.EXAMPLE.com./x.png?y#z":  true,
		"https://a.b.example.com:8443/x":    true,
		"http://media.test/x":               true,
		"file:///media/x.png":               true,
		"https://example.com/x":             false,
		"https://evilexample.com/x":         false,
		"https://a.example.com.evil.test/x": false,
		"http://a.example.com/x":            false,
		"https://media.test/x":              false,
		"http://169.254.169.254/latest":     false,
		"http://user@media.test/x":          false,
		"http://media.test@evil.test/x":     false,
		"http://media.test:80@evil.test/":   false,
		`http://evil.test\@media.test/`:     false,
		`http:\\media.test/`:                false,
		"http:/media.test/":                 false,
		"http:media.test":                   false,
		"http:///media.test":                false,
		"http://evil.test#@media.test/":     false,
		"http://media.test\t.evil.test/":    false,
		" http://media.test/":               false,
		"http://media.test/\n":              false,
		"http://mediä.test/":                false,
		"http://[::1]/":                     false,
		"http://media.test%2eevil.test/":    false,
		"ftp://media.test/":                 false,
		"media.test/x.png":                  false,
		"//media.test/x.png":                false,
		"":                                  false,
	} {
		t.Run(url, func(t *testing.T) {
			quoted, err := json.Marshal(url)
			require.NoError(t, err)
			b, err := body.ParseChat([]byte(`{"messages":[{"content":[{"image_url":`+string(quoted)+`}]}]}`), 1, false)
			require.NoError(t, err)
			x := &exchange{h: h, body: b}
			e := x.checkSources()
			assert.Equal(t, want, e == nil)
			if e != nil {
				assert.Equal(t, "messages[0].content[0]", e.Param)
			}
		})
	}
	b, err := body.ParseChat([]byte(`{"messages":[{"content":[{"input_audio":{"data":"AAAA"}}]}]}`), 1, false)
	require.NoError(t, err)
	assert.Nil(t, (&exchange{h: h, body: b}).checkSources(), "inline audio is data")
	assert.NotNil(t, (&exchange{h: &Handler{sources: h.sources[1:]}, body: b}).checkSources())
	assert.Nil(t, (&exchange{h: new(Handler), body: b}).checkSources(), "anywhere by default")
}

func TestBadMediaSources(t *testing.T) {
	for _, s := range []string{"", "data", ":", "https:x", "https:/x", "https://", "https://x/y", "https://*", "https://a.*.com", "https://u@x", "*"} {
		_, err := parseSource(s)
		assert.Error(t, err, s)
	}
}
