package requests

import "strings"

// Refused are requests that a model for images and text rejects or can be expected to reject.
func Refused(m Media) []Request {
	list := append(refusedMedia(m), refusedOptions(m.image("photo.jpg"))...)
	for i := range list {
		list[i].Refused = true
	}
	return list
}

// refusedMedia have an error in a part of the content.
func refusedMedia(m Media) []Request {
	photo := m.image("photo.jpg")
	question := text("What do you see?")
	return []Request{
		reads(chat("bad base64", nil, imageURL("data:image/png;base64,!!!!"), question)),
		reads(chat("not an image", nil, imageURL(dataURI("image/png", []byte("hello, this is no image"))), question)),
		reads(chat("truncated PNG", nil, m.image("truncated.png"), question)),
		reads(chat("a file elsewhere", nil, imageURL("file:///etc/hostname"), question)),
		reads(chat("a file that is not there", nil, imageURL(m.fileURL("missing.png")), question)),
		reads(chat("a host that refuses", nil, imageURL("http://127.0.0.1:9/a.png"), question)),
		chat("too many images", nil, append([]any{question}, repeat(photo, 17)...)...),
		reads(chat("an image of 2×2", nil, m.image("2x2.png"), question)),
		reads(chat("an image of 1000×3", nil, m.image("1000x3.png"), question)),
		chat("an unknown part", nil, object{"type": "smell", "smell": "x"}, question),
		chat("a number for a part", nil, 7, question),
		chat("no url", nil, object{"type": "image_url", "image_url": object{}}, question),
		chat("url a number", nil, object{"type": "image_url", "image_url": object{"url": 7}}, question),
		reads(chat("url empty", nil, imageURL(""), question)),
		reads(chat("url without a scheme", nil, imageURL("photo.jpg"), question)),
		chat("image_url null", nil, object{"type": "image_url", "image_url": nil}, question),
		chat("image_url missing", nil, object{"type": "image_url"}, question),
		reads(chat("audio for a model without it", nil, object{"type": "input_audio", "input_audio": object{"data": "AAAA", "format": "wav"}}, question)),
	}
}

// refusedOptions have an error elsewhere.
func refusedOptions(photo object) []Request {
	question := text("What do you see?")
	return []Request{
		chat("unknown model", object{"model": "other"}, question),
		chat("unknown model, image", object{"model": "other"}, photo),
		chat("too long", nil, text(strings.Repeat(long, 200))),
		chat("too long, with an image", nil, photo, text(strings.Repeat(long, 200))),
		chat("max_tokens -1", object{"max_tokens": -1}, question),
		chat("max_tokens 0", object{"max_tokens": 0}, question),
		chat("max_tokens too large", object{"max_tokens": 100000}, question),
		chat("max_tokens a string", object{"max_tokens": "many"}, question),
		chat("temperature -1", object{"temperature": -1}, question),
		chat("temperature a string", object{"temperature": "hot"}, photo, question),
		chat("top_p 2", object{"top_p": 2}, question),
		chat("n 0", object{"n": 0}, question),
		chat("n 3 without sampling", object{"n": 3}, photo, question),
		talk("no messages", nil),
		Request{Name: "messages a string", Path: chatPath, Body: body(object{"messages": "hi"}, nil)},
		Request{Name: "no messages at all", Path: chatPath, Body: body(nil, nil)},
		talk("a number for a role", nil, message("user", "Hi"), object{"role": 7, "content": "Hello"}),
		talk("no role", nil, object{"content": "Hello"}),
		chat("tool_choice unknown", object{"tools": []any{weather}, "tool_choice": object{"type": "function", "function": object{"name": "other"}}}, question),
		chat("required without tools", object{"tool_choice": "required"}, question),
		chat("top_logprobs without logprobs", object{"top_logprobs": 2}, question),
		chat("min_tokens above max_tokens", object{"min_tokens": 9, "max_tokens": 5}, question),
		chat("a schema that cannot be", object{"response_format": object{"type": "json_schema", "json_schema": object{"name": "x", "schema": object{"type": "nothing"}}}}, question),
		chat("a broken regex", object{"structured_outputs": object{"regex": "[a-"}}, question),
		chat("logit_bias out of range", object{"logit_bias": object{"999999": 1}}, question),
		chat("allowed_token_ids empty", object{"allowed_token_ids": []int{}}, question),
		completion("completion without a prompt", nil, nil),
		completion("completion, unknown model", "Once", object{"model": "other"}),
		completion("completion, a prompt of nothing", []string{}, nil),
		{Name: "no JSON", Path: chatPath, Body: []byte(`{"model":"tiny","messages":[`), Once: true},
		{Name: "a list", Path: chatPath, Body: []byte(`[]`), Once: true},
		{Name: "no body", Path: chatPath, Once: true},
		{Name: "prompt_logprobs of a stream", Path: chatPath, Once: true, Body: chat("", object{"prompt_logprobs": 1, "stream": true}, question).Body},
	}
}

func repeat(part object, n int) (list []any) {
	for range n {
		list = append(list, part)
	}
	return list
}

// reads marks a request whose status depends on the bytes of the media.
func reads(r Request) Request {
	r.ReadsMedia = true
	return r
}
