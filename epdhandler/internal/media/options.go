package media

import (
	"bytes"
	"slices"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// soundOption makes of a video two media for an engine: the video and its sound.
const soundOption = "use_audio_in_video"

// CheckOptions refuses options for the processing of media that the proxy and an engine could
// read differently, or with which a client that is not trusted could have an engine fetch something.
func CheckOptions(b *body.Body, trusted bool) *Error {
	sound := b.Option(body.MMProcessorKwargs, soundOption)
	switch {
	case sound != nil && !body.IsBool(sound) && !body.IsNull(sound):
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
	return slices.ContainsFunc(b.Options(body.MMProcessorKwargs), func(e body.Entry) bool {
		return body.HoldsText(e.Value) || bytes.HasPrefix(e.Name, []byte(`"_`)) ||
			slices.ContainsFunc(fetching, func(name string) bool { return body.IsString(e.Name, name) })
	})
}

// withSound reports whether an item is a video whose sound is media of its own.
func (s *Set) withSound(i Item) bool {
	return i.Kind == videoURL && string(s.body.Option(body.MMProcessorKwargs, soundOption)) == "true"
}
