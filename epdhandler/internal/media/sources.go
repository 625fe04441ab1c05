package media

import (
	"bytes"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// A Source is where media may come from: a scheme and, unless it is empty, a host. "*." stands for all below.
type Source struct{ scheme, host string }

// ParseSource reads "data:", "file:", "https:", "https://media.example.com" or "https://*.example.com".
func ParseSource(s string) (Source, error) {
	scheme, rest, ok := strings.Cut(strings.ToLower(s), ":")
	host, hasHost := strings.CutPrefix(rest, "//")
	switch {
	case !ok || scheme == "" || rest != "" && (!hasHost || host == ""):
		return Source{}, fmt.Errorf("bad media source '%s'; write one such as data:, file:, https: or https://*.example.com", s)
	case host != "" && !isName(strings.TrimPrefix(host, "*.")):
		return Source{}, fmt.Errorf("bad media source '%s': after https:// there can be a host only, or *. and a host", s)
	}
	return Source{scheme, host}, nil
}

// isName reports whether a host, in lower case, is a name of non-empty labels or an IPv4 address,
// which all parsers, resolvers and clients take for the same host.
func isName(host string) bool {
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// maxURL is the longest URL that is looked at. Data is longer, but begins with its scheme.
const maxURL = 8 << 10

// url returns the URL of an item that is not inline, unescaped. If it has more than max bytes as
// written, it is cut, but in no escape, and whole is false.
func (s *Set) url(i Item, max int) (url string, whole bool) {
	raw := s.body.Slice(i.payload)
	end := body.Cut(raw, max)
	return string(body.Unescape(raw[:end])), end == len(raw)
}

// CheckSources refuses media from elsewhere than is allowed: an engine that fetches what clients name
// would open the network that it is in. Without sources, all are allowed.
func (s *Set) CheckSources(allowed []Source) *Error {
	if len(allowed) == 0 {
		return nil
	}
	for _, item := range s.Items() {
		from, problem := Source{scheme: "data"}, ""
		if item.Kind != inputAudio {
			from, problem = sourceOf(s.url(item, maxURL))
		}
		switch {
		case problem != "":
			problem = fmt.Sprintf("the URL in part %d of message %d %s", item.Part, item.Message, problem)
			return &Error{Code: "media_url", Message: problem, Param: item.Path()}
		case !slices.ContainsFunc(allowed, from.within):
			problem = fmt.Sprintf("the media of part %d of message %d come from a source that is not allowed", item.Part, item.Message)
			return &Error{Code: "media_source", Message: problem, Param: item.Path()}
		}
	}
	return nil
}

// within reports whether a URL's source is one of those that an allowed one stands for.
func (from Source) within(allowed Source) bool {
	return allowed.scheme == from.scheme && (allowed.host == "" || isName(from.host) &&
		(allowed.host == from.host || strings.HasPrefix(allowed.host, "*.") && strings.HasSuffix(from.host, allowed.host[1:])))
}

// sourceOf returns where a URL points to, or why that cannot be told. It accepts only URLs that no two
// parsers can read differently, because vLLM has another one, and of those that are not whole only data:
// what is cut off may change the host.
func sourceOf(raw string, whole bool) (from Source, problem string) {
	scheme, _, ok := strings.Cut(raw, ":")
	if scheme = strings.ToLower(scheme); ok && scheme == "data" {
		return Source{scheme: scheme}, ""
	}
	u, err := url.Parse(raw)
	switch {
	case !whole:
		return Source{}, fmt.Sprintf("is longer than %d bytes", maxURL)
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == '\\' || r > 0x7e }):
		return Source{}, "has characters that must be percent-encoded, such as spaces or letters that are not ASCII"
	case err != nil, u.Opaque != "", u.Host == "" && scheme != "file":
		return Source{}, "is malformed: it must have a scheme and a host, as in https://media.example.com/1.png"
	case u.User != nil:
		return Source{}, "must not have a user name"
	}
	return Source{strings.ToLower(u.Scheme), strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")}, ""
}

// soundOption makes of a video two media for an engine: the video and its sound.
const soundOption = "use_audio_in_video"

// CheckOptions refuses options for the processing of media that the proxy and an engine could
// read differently, or with which a client that is not trusted could have an engine fetch something.
func CheckOptions(b *body.Body, trusted bool) *Error {
	sound := b.Members(body.MMProcessorKwargs).Value(soundOption)
	switch {
	case body.Given(sound) && !body.IsBool(sound):
		return invalid("mm_processor_kwargs."+soundOption, "%s must be true, false or null", soundOption)
	case !trusted && namesMedia(b):
		return invalid("mm_processor_kwargs", "mm_processor_kwargs may hold numbers, booleans and objects of those: text, and options that name media or files, are for trusted clients only")
	}
	return nil
}

// fetching are options that engines take for media, or hand on to what loads the model's files.
var fetching = []string{
	"text", "image", "images", "audio", "audios", "video", "videos",
	"cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "resume_download",
	"revision", "subfolder", "token", "trust_remote_code", "use_auth_token",
}

// namesMedia reports whether mm_processor_kwargs could make an engine fetch anything. vLLM hands
// them to a processor of Hugging Face's, which takes any text that it finds among media for a URL or
// a file. Engines since 0.31 refuse all of them, unless they are told to trust them.
func namesMedia(b *body.Body) bool {
	return slices.ContainsFunc(b.Members(body.MMProcessorKwargs), func(e body.Entry) bool {
		return body.HoldsText(e.Value) || bytes.HasPrefix(e.Name, []byte(`"_`)) ||
			slices.ContainsFunc(fetching, func(name string) bool { return body.IsString(e.Name, name) })
	})
}

// withSound reports whether an item is a video whose sound is media of its own.
func (s *Set) withSound(i Item) bool {
	return i.Kind == videoURL && string(s.body.Members(body.MMProcessorKwargs).Value(soundOption)) == "true"
}
