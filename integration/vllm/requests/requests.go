// Package requests has one request of each kind that clients send to vLLM, including those that
// vLLM rejects. It knows nothing of engines, topologies or answers.
package requests

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Request is one kind of request.
type Request struct {
	Name string
	// Path is the route. Default: /v1/chat/completions.
	Path string
	// Body is a JSON object that does not ask for a stream, or bytes that are not a valid request.
	Body []byte
	// Once says that there is no streamed form: it already is a stream, is rejected, or is not JSON.
	Once bool
	// ReadsMedia says that the status of the answer depends on the bytes of the media.
	ReadsMedia bool
	// Refused says that engines may reject it.
	Refused bool
}

// Both returns all requests in both forms, whole and streamed.
func Both(list []Request) (all []Request) {
	for _, r := range list {
		all = append(all, r)
		if !r.Once {
			all = append(all, r.Streamed())
		}
	}
	return all
}

// Streamed returns the same request as a stream that ends with its usage.
func (r Request) Streamed() Request {
	var body object
	if err := json.Unmarshal(r.Body, &body); err != nil {
		panic(fmt.Sprintf("%s: %v", r.Name, err))
	}
	body["stream"] = true
	if body["stream_options"] == nil {
		body["stream_options"] = object{"include_usage": true}
	}
	r.Body = encode(body)
	r.Name += " (stream)"
	return r
}

const (
	chatPath = "/v1/chat/completions"
	textPath = "/v1/completions"
)

type object = map[string]any

// Media is the directory of the media files, which engines can read too. If it is empty, media are
// placeholders that only fake engines accept.
type Media string

// file returns the contents of a file as a data URI.
func (m Media) file(name string) string {
	kind := types[filepath.Ext(name)]
	if m == "" {
		return dataURI(kind, []byte(name))
	}
	data, err := os.ReadFile(filepath.Join(string(m), name))
	if err != nil {
		panic(err) // the suite makes them first
	}
	return dataURI(kind, data)
}

// types are fixed here because the MIME types that the system knows vary.
var types = map[string]string{
	".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp",
	".wav": "audio/wav", ".mp4": "video/mp4",
}

func (m Media) fileURL(name string) string { return "file://" + filepath.Join(string(m), name) }

func dataURI(kind string, data []byte) string {
	return "data:" + kind + ";base64," + base64.StdEncoding.EncodeToString(data)
}

func (m Media) image(name string) object { return imageURL(m.file(name)) }

func (m Media) audio(name string) object {
	return object{"type": "audio_url", "audio_url": object{"url": m.file(name)}}
}

func (m Media) video(name string) object { return videoURL(m.file(name)) }

// frames is a video in vLLM's form without a container: JPEG pictures, separated by commas.
func (m Media) frames() object {
	var pictures []string
	for i := range 4 {
		_, data, _ := strings.Cut(m.file(fmt.Sprintf("frame%d.jpg", i)), ",")
		pictures = append(pictures, data)
	}
	return videoURL("data:video/jpeg;base64," + strings.Join(pictures, ","))
}

func imageURL(url string) object {
	return object{"type": "image_url", "image_url": object{"url": url}}
}

func videoURL(url string) object {
	return object{"type": "video_url", "video_url": object{"url": url}}
}

func text(s string) object { return object{"type": "text", "text": s} }

func message(role string, content any) object { return object{"role": role, "content": content} }

// with returns an object with additional members.
func with(o object, more object) object {
	o = maps.Clone(o)
	maps.Copy(o, more)
	return o
}

// common are the members of all requests unless overridden: answers are short, deterministic
// and compared by their tokens.
var common = object{"model": "tiny", "max_tokens": 12, "temperature": 0, "seed": 1, "return_token_ids": true}

// chat is a chat of one message of the user.
func chat(name string, options object, content ...any) Request {
	return talk(name, options, message("user", content))
}

// talk is a chat of several messages.
func talk(name string, options object, messages ...any) Request {
	return Request{Name: name, Path: chatPath, Body: body(options, object{"messages": messages})}
}

// completion is a request for the completion of a text.
func completion(name string, prompt any, options object) Request {
	return Request{Name: name, Path: textPath, Body: body(options, object{"prompt": prompt})}
}

// body makes a request of the common members and others, which override them. nil removes a member.
func body(options, content object) []byte {
	o := with(with(common, content), options)
	for name, value := range o {
		if value == nil {
			delete(o, name)
		}
	}
	return encode(o)
}

func encode(o object) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return b
}

// AboutImage is a chat about one PNG image; the answer has this many tokens.
func AboutImage(png []byte, tokens int) Request {
	return about("an image of its own", tokens, imageURL(dataURI("image/png", png)))
}

// AboutFrames is a chat about a video of JPEG images.
func AboutFrames(tokens int, frames ...[]byte) Request {
	var list []string
	for _, f := range frames {
		list = append(list, base64.StdEncoding.EncodeToString(f))
	}
	return about("a video of its own", tokens, videoURL("data:video/jpeg;base64,"+strings.Join(list, ",")))
}

// AboutSound is a chat about a WAV file.
func AboutSound(wav []byte, tokens int) Request {
	return about("a sound of its own", tokens, object{"type": "audio_url", "audio_url": object{"url": dataURI("audio/wav", wav)}})
}

// Album is a chat about several PNG images.
func Album(images ...[]byte) Request {
	var parts []any
	for _, i := range images {
		parts = append(parts, imageURL(dataURI("image/png", i)))
	}
	return about("an album", 8, parts...)
}

func about(name string, tokens int, media ...any) Request {
	return chat(name, object{"max_tokens": tokens, "ignore_eos": true}, append(media, text("What do you see?"))...)
}

// Spoilt returns the same request with an error that is found only by engines that generate, after
// its media were encoded.
func (r Request) Spoilt() Request {
	r.Body = []byte(strings.Replace(string(r.Body), `"temperature":0`, `"temperature":"hot"`, 1))
	return r
}

// AboutText is a chat without media; the answer has this many tokens.
func AboutText(tokens int) Request {
	return chat("text", object{"max_tokens": tokens, "ignore_eos": true}, text("Tell me more."))
}
