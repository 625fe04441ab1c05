package media

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMediaSources(t *testing.T) {
	sources := []string{"data:", "https://*.example.com", "http://media.test", "file:"}
	var allowed []Source
	for _, s := range sources {
		from, err := ParseSource(s)
		require.NoError(t, err)
		allowed = append(allowed, from)
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
		"data":                              false,
		"data.example.com":                  false,
		"http:?//a.example.com":             false,
	} {
		t.Run(url, func(t *testing.T) {
			quoted, err := json.Marshal(url)
			require.NoError(t, err)
			_, set, err := ParseChat([]byte(`{"messages":[{"content":[{"image_url":`+string(quoted)+`}]}]}`), 1, false)
			require.NoError(t, err)
			e := set.CheckSources(allowed)
			assert.Equal(t, want, e == nil)
			if e != nil {
				assert.Equal(t, "messages[0].content[0]", e.Param)
			}
		})
	}
	_, set, err := ParseChat([]byte(`{"messages":[{"content":[{"input_audio":{"data":"AAAA"}}]}]}`), 1, false)
	require.NoError(t, err)
	assert.Nil(t, set.CheckSources(allowed), "inline audio is data")
	assert.NotNil(t, set.CheckSources(allowed[1:]))
	assert.Nil(t, set.CheckSources(nil), "anywhere by default")
}

// What an engine's parser might take for another host than ours does, or what no
// parser should take for a host, gets past no source that names one. The URLs are as
// in JSON, between the quotes.
func TestMediaSourcesAreStrict(t *testing.T) {
	var allowed []Source
	for _, s := range []string{"data:", "https://*.example.com"} {
		from, err := ParseSource(s)
		require.NoError(t, err)
		allowed = append(allowed, from)
	}
	// a URL whose first bytes are an allowed host, and end exactly where looking at it does
	const scheme, host = "https://", ".example.com"
	cut := scheme + strings.Repeat("x", (maxURL-len(scheme))%6) +
		escaped(strings.Repeat("a", (maxURL-len(scheme))/6-len(host))+host)
	require.Len(t, cut, maxURL)

	for url, want := range map[string]bool{
		cut:                           true,
		cut + "@169.254.169.254/":     false,
		cut + ".evil.test/":           false,
		cut + ":443/":                 false, // it is too long to be looked at
		cut[:len(cut)-72] + "@[::1]/": false,
		"https://a.example.com/" + strings.Repeat("x", maxURL):      false,
		"data:image/png;base64," + strings.Repeat(`\/\\`, maxURL):   true,
		`\u0064ata:image/png,` + strings.Repeat(`\u0041`, maxURL):   true,
		"https://" + strings.Repeat(`\\`, maxURL) + ".example.com/": false,
		"https:/" + strings.Repeat(`/\\`, maxURL) + ".example.com/": false,
		`\u0068ttps:\/\/a\u002eexample.com\/`:                       true,
		"https://xn--bcher-kva.example.com/":                        true,
		"https://a_b-c.0.example.com/":                              true,
		"HTTPS://a.example.com:443/":                                true,
		"https://a.example.com?@evil.test/":                         true, // as all have it: a query
		"https://a.example.com#@evil.test/":                         true,
		"https://a.example.com/@evil.test/":                         true,
		"https://a.example.com/?x=https://evil.test/":               true,
		"https://a.example.com:443@evil.test/":                      false,
		"https://a.example.com%40evil.test/":                        false,
		"https://evil.test%2f.example.com/":                         false,
		"https://evil.test%00.example.com/":                         false,
		"https://evil.test%EF%BC%8F.example.com/":                   false, // a slash of full width
		"https://127.0.0.1%E3%80%82.example.com/":                   false, // an ideographic full stop
		"https://evil.test／.example.com/":                           false,
		"https://evil.test。example.com/":                            false,
		"https://bücher.example.com/":                               false,
		"https://[::1]/":                                            false,
		"https://[::1%25.example.com]/":                             false,
		"https://[::1%.example.com]/":                               false,
		"https://[::ffff:127.0.0.1%25x.example.com]:443/":           false,
		"https://[::1].example.com/":                                false,
		"https://[v1.example.com]/":                                 false,
		"https://evil.test:80.example.com/":                         false,
		"https://evil.test:80:.example.com/":                        false,
		"https://evil.test:443.example.com:443/":                    false,
		"https://evil.test;.example.com/":                           false,
		"https://evil.test,.example.com/":                           false,
		"https://evil.test'.example.com/":                           false,
		`https://evil.test\".example.com/`:                          false,
		"https://evil.test<.example.com/":                           false,
		"https://evil.test&.example.com/":                           false,
		"https://evil.test=.example.com/":                           false,
		"https://$(x).example.com/":                                 false,
		"https://*.example.com/":                                    false,
		"https://.example.com/":                                     false,
		"https://a..example.com/":                                   false,
		"https://a.example.com../":                                  false,
		`https://evil.test\\.example.com/`:                          false,
		`https://evil.test\\@a.example.com/`:                        false,
		`https://a.example.com\\@evil.test/`:                        false,
		`https:\\\\a.example.com/`:                                  false,
		`https:/\\a.example.com/`:                                   false,
		`https://evil.test\t.example.com/`:                          false,
		`https://evil.test\n.example.com/`:                          false,
		`https://evil.test\r\n.example.com/`:                        false,
		`https://evil.test\u0000.example.com/`:                      false,
		`https://evil.test\u00a0.example.com/`:                      false,
		`https://evil.test\u2028.example.com/`:                      false,
		`https://evil.test\ud800.example.com/`:                      false,
		`ht\ttps://a.example.com/`:                                  false,
		`h\ntt\nps://a.example.com/`:                                false,
		`\thttps://a.example.com/`:                                  false,
		`\u0000data:,`:                                              false,
		`\ndata:,`:                                                  false,
		`da\nta:,`:                                                  false,
		" data:,":                                                   false,
		"data :,":                                                   false,
		"data;https://evil.test/":                                   false,
		"https:a.example.com/":                                      false,
		"https:/a.example.com/":                                     false,
		"https:///a.example.com/":                                   false,
		"https:////a.example.com/":                                  false,
		"https://":                                                  false,
		"https://:443/":                                             false,
		"https://@a.example.com/":                                   false,
		"https://a.example.com:x/":                                  false,
		"https://a.example.com:-1/":                                 false,
		"//a.example.com/":                                          false,
		`\\\\a.example.com/`:                                        false,
		"/a.example.com/":                                           false,
		"://a.example.com/":                                         false,
		"http://a.example.com/":                                     false,
		"httpſ://a.example.com/":                                    false, // folds to an s
		"ſ3://a.example.com/":                                       false,
		"wss://a.example.com/":                                      false,
		"ftp://a.example.com/":                                      false,
		"file:///etc/passwd":                                        false,
		"file://a.example.com/":                                     false,
		"url:https://a.example.com/":                                false,
		"view-source:https://a.example.com/":                        false,
		"jar:https://a.example.com/!/":                              false,
		"blob:https://a.example.com/":                               false,
		"https+unix://a.example.com/":                               false,
		"https://2130706433/":                                       false,
		"https://0x7f.1/":                                           false,
		"https://017700000001/":                                     false,
		"https://127.1/":                                            false,
		"https://example.com/":                                      false,
		"https://aexample.com/":                                     false,
		"https://a.example.com.evil.test/":                          false,
		"https://a.example.co/":                                     false,
	} {
		_, set, err := ParseChat([]byte(`{"messages":[{"content":[{"image_url":"`+url+`"}]}]}`), 1, false)
		require.NoError(t, err, url)
		assert.Equal(t, want, set.CheckSources(allowed) == nil, "%.100s", url)
	}
}

// escaped is s in JSON's longest form.
func escaped(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, `\u%04x`, c)
	}
	return b.String()
}

func TestBadMediaSources(t *testing.T) {
	for _, s := range []string{"", "data", ":", "https:x", "https:/x", "https://", "https://x/y", "https://*", "https://a.*.com", "https://u@x", "*",
		"https://x:443", "https://[::1]", "https://x.", "https://.x", "https://a..b", "https://a b", "https://bücher.test", "https://*", "https://*.", "https://%41"} {
		_, err := ParseSource(s)
		assert.Error(t, err, s)
	}
}
