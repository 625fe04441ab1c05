package media

import "github.com/caddy-epd/caddy-epd/epdhandler/internal/body"

// vLLM 0.32 reads a content part (renderers/chat_utils.py) by the first of the media members that
// it has, null or not, in an order of vLLM's own, if it has a uuid or no type; else by its type.
// A part is accepted here only if both ways lead to the same media: it has one media member that
// is not null, those that are null are blanked, and its type fits.

// The modalities of media for encoders.
const (
	Image = "image"
	Audio = "audio"
	Video = "video"
)

// carriers are the members of a part that vLLM reads as media. Those with a modality are for
// encoders; the others are ready for the model.
var carriers = [...]struct{ kind, modality string }{
	{imageURL, Image},
	{audioURL, Audio},
	{inputAudio, Audio},
	{videoURL, Video},
	{imagePIL, ""},
	{"image_embeds", ""},
	{"audio_embeds", ""},
	{"video_embeds", ""},
	{"prompt_embeds", ""},
}

const (
	imageURL   = "image_url"
	audioURL   = "audio_url"
	inputAudio = "input_audio"
	videoURL   = "video_url"
	imagePIL   = "image_pil"
	inputImage = "input_image"                        // a type, of the Responses API, of a part with image_url
	maxType    = len(`\u0000`) * len("prompt_embeds") // the longest way to write a type that counts
)

// carrier returns the carrier of this name and its modality, empty if there is none.
func carrier[T string | []byte](name T) (kind, modality string) {
	for _, c := range carriers {
		if string(name) == c.kind {
			return c.kind, c.modality
		}
	}
	return "", ""
}

// spans is where the media of a part stand.
type spans struct {
	member  body.Range // from the name to the end of the value
	value   body.Range
	payload body.Range // of the URL or the data, between the quotes; empty if there is none
	format  body.Range // of the format of input_audio: of the value, empty if there is none
}

// isString reports whether the URL is a plain string, not in an object.
func (s spans) isString() bool { return s.payload.End == s.value.End-1 }

type part struct {
	spans
	kind   string     // the media member that is not null; empty if there is none
	second bool       // there is one more
	nulls  bool       // there is a media member that is null
	bad    bool       // the media member has no form that vLLM knows
	typ    body.Range // of its value; empty if it is missing
	odd    bool       // it is no string
	text   string     // the type, if it is a string and not too long
	uuid   body.Range // of its value
	named  bool       // uuid is not null
	texted bool       // it is a string
	detail bool       // there is one, which input_image must have
}

func (it *part) carries(s *body.Scanner, m body.Member, kind, modality string) (err error) {
	start := s.Pos()
	it.second = it.second || it.kind != ""
	it.kind, it.spans, it.bad = kind, spans{}, false
	if modality != "" {
		err = it.read(s)
	} else {
		err = s.Value()
	}
	it.spans.member, it.value = body.Range{Start: m.Raw.Start, End: s.Pos()}, body.Range{Start: start, End: s.Pos()}
	return err
}

func (it *part) member(s *body.Scanner, m body.Member) error {
	start, first := s.Pos(), s.Peek()
	err := s.Value()
	value := body.Range{Start: start, End: s.Pos()}
	switch string(m.Name) {
	case "uuid":
		it.uuid, it.named, it.texted = value, first != 'n', first == '"'
	case "type":
		it.typ, it.odd = value, first != '"'
		if v := s.Slice(value); err == nil && !it.odd && len(v) <= maxType+2 {
			it.text = text(v)
		}
	case "detail":
		it.detail = first == '"'
	}
	return err
}

// read steps over the value of a media member for encoders. vLLM knows {"url": "…"}, also as a plain
// string, and for input_audio {"data": "…", "format": "…"}.
func (it *part) read(s *body.Scanner) (err error) {
	payload := "url"
	if it.kind == inputAudio {
		payload = "data"
	}
	switch c := s.Peek(); {
	case c == '"' && payload == "url":
		it.payload, err = s.Text()
		return err
	case c != '{':
		it.bad = true
		return s.Value()
	}
	return s.Object(func(m body.Member) (err error) {
		start, first := s.Pos(), s.Peek()
		switch name := string(m.Name); {
		case name == payload && first == '"':
			it.payload, err = s.Text()
			return err
		case name == payload:
			it.bad = it.bad || first != 'n'
		case name == "format" && it.kind == inputAudio:
			it.bad = it.bad || first != 'n' && first != '"'
			err = s.Value()
			it.format = body.Range{Start: start, End: s.Pos()}
			return err
		}
		return s.Value()
	})
}

// problem says why a part is not accepted, in words that follow "part 1 of message 2", and which of its
// members is at fault.
func (it *part) problem(trusted bool) *Error {
	named := it.texted && trusted // vLLM does not look at the type then
	kind, modality := carrier(it.kind)
	typeKind, typeModality := carrier(it.text)
	if it.text == inputImage {
		typeKind, typeModality = imageURL, Image
	}
	encoded, typeEncoded := modality != "", typeModality != ""
	form, fits := it.form()
	switch {
	case it.odd: // vLLM answers 500, having loaded the media
		return invalid("type", "has a type that is no string")
	case it.second:
		return invalid("", "has more than one media member; send one part for each")
	case kind == imagePIL || typeKind == imagePIL:
		return invalid(imagePIL, "has image_pil, which JSON cannot carry; send image_url")
	case !trusted && kind != "" && !encoded:
		return invalid(kind, "has %s, which only trusted clients may send", kind)
	case !trusted && typeKind != "" && !typeEncoded:
		return invalid("type", "has the type %s, which only trusted clients may send", typeKind)
	case kind == "" && (it.nulls || typeKind != "") && it.named && !trusted:
		return invalid("", "is nothing but a uuid; send its media, for clients may not name what others have sent")
	case kind == "" && typeEncoded && !(it.named && trusted):
		return invalid(typeKind, "has no %s", typeKind)
	case !encoded:
		return nil
	case !it.typ.Empty() && typeKind != kind && !named:
		return invalid("type", "has %s, but its type is another", kind)
	case it.bad, !named && !fits:
		return invalid(kind, "has %s in no known form: it must be %s", kind, form)
	case it.payload.Empty() && !named:
		return invalid(kind, "has no media in %s", kind)
	}
	return nil
}

// form is what the value should be. fits reports whether vLLM takes a value that is not bad for the type
// of the part: without a type it takes both a string and an object.
func (it *part) form() (want string, fits bool) {
	switch {
	case it.kind == inputAudio:
		return `{"data": "…", "format": "…"}`, true
	case it.text == inputImage:
		return `a string, and there must be detail`, it.isString() && it.detail
	}
	return `{"url": "…"}`, !it.isString() || it.typ.Empty()
}
