package requests

import "strings"

const long = "The quick brown fox jumps over the lazy dog, and then it does so again. "

var weather = object{"type": "function", "function": object{
	"name":        "weather",
	"description": "The weather of a city",
	"parameters": object{
		"type":       "object",
		"properties": object{"city": object{"type": "string", "enum": []string{"Rome", "Oslo"}}},
		"required":   []string{"city"},
	},
}}

// Texts are requests without media, and with all options.
func Texts() []Request {
	question := text("What do you see?")
	list := []Request{
		chat("text part", nil, question),
		talk("text", nil, message("user", "What do you see?")),
		talk("system", nil, message("system", "Be brief."), message("user", "Hello")),
		talk("unicode", nil, message("user", "Grüße, 你好, \U0001F600 ẞ é")),
		talk("several turns", nil, message("user", "Hello"), message("assistant", "Hi."), message("user", "And now?")),
		chat("long text", nil, text(strings.Repeat(long, 40))),
		chat("nothing extra", object{"seed": nil, "return_token_ids": nil}, question),
		chat("sampled with a seed", object{"temperature": 0.9, "top_p": 0.95, "seed": 7}, question),
		chat("two sampled answers", object{"temperature": 0.9, "n": 2, "seed": 7}, question),
		chat("logprobs", object{"logprobs": true, "top_logprobs": 3}, question),
		chat("echo", object{"echo": true}, question),
		chat("tokens as ids", object{"logprobs": true, "return_tokens_as_token_ids": true}, question),
		chat("stop string", object{"stop": []string{"a", "e", "o"}, "max_tokens": 40}, question),
		chat("stop ids", object{"stop_token_ids": []int{65, 66, 67, 68, 69, 70, 71, 72, 73, 74}, "max_tokens": 40}, question),
		chat("max_completion_tokens", object{"max_tokens": nil, "max_completion_tokens": 9}, question),
		chat("both limits", object{"max_tokens": 20, "max_completion_tokens": 9}, question),
		chat("one token", object{"max_tokens": 1}, question),
		chat("min_tokens", object{"min_tokens": 10, "max_tokens": 14}, question),
		chat("ignore_eos", object{"ignore_eos": true, "max_tokens": 20}, question),
		chat("many tokens", object{"ignore_eos": true, "max_tokens": 200}, question),
		chat("json_schema", object{"max_tokens": 60, "response_format": object{"type": "json_schema", "json_schema": object{
			"name": "answer", "schema": object{"type": "object", "properties": object{"yes": object{"type": "boolean"}}, "required": []string{"yes"}, "additionalProperties": false},
		}}}, question),
		chat("json_object", object{"max_tokens": 20, "response_format": object{"type": "json_object"}}, question),
		chat("regex", object{"structured_outputs": object{"regex": "[a-d]{5}"}}, question),
		chat("choice", object{"structured_outputs": object{"choice": []string{"left", "right"}}}, question),
		chat("tools, auto", object{"tools": []any{weather}}, question),
		chat("tools, none", object{"tools": []any{weather}, "tool_choice": "none"}, question),
		chat("tools, required", object{"tools": []any{weather}, "tool_choice": "required", "max_tokens": 80}, question),
		chat("tools, named", object{"tools": []any{weather}, "tool_choice": object{"type": "function", "function": object{"name": "weather"}}, "max_tokens": 80}, question),
		talk("an assistant to go on for", object{"continue_final_message": true, "add_generation_prompt": false}, message("user", "Count"), message("assistant", "One, two,")),
		chat("logit_bias", object{"logit_bias": object{"70": 5, "71": -5}}, question),
		chat("penalties", object{"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}, question),
		chat("bad_words", object{"bad_words": []string{"a", "the"}}, question),
		chat("allowed_token_ids", object{"allowed_token_ids": []int{40, 41, 42, 43, 44, 45}}, question),
		chat("cache_salt", object{"cache_salt": "pepper"}, question),
		chat("user, metadata, priority", object{"user": "u", "metadata": object{"a": "b"}, "priority": 0}, question),
		chat("chat_template_kwargs", object{"chat_template_kwargs": object{"enable_thinking": false}}, question),
		chat("request_id", object{"request_id": "mine"}, question),
		chat("truncate_prompt_tokens", object{"truncate_prompt_tokens": 10}, question),
		chat("unknown members", object{"colour": "blue", "nested": object{"a": []int{1}}}, question),
		talk("a name", nil, object{"role": "user", "name": "Ann", "content": "Hello"}),
		talk("unknown role", nil, message("narrator", "Once upon a time"), message("user", "Hello")),
		completion("completion", "Once upon a time", nil),
		completion("completion, several prompts", []string{"Once", "Twice"}, nil),
		completion("completion of tokens", []int{72, 73, 74}, nil),
		completion("completion, echo", "Once upon a time", object{"echo": true}),
		completion("completion, two answers", "Once upon a time", object{"n": 2, "temperature": 0.9}),
		completion("completion, logprobs", "Once upon a time", object{"logprobs": 2}),
	}
	return append(list,
		once(chat("prompt_logprobs", object{"prompt_logprobs": 1}, question)),
		once(completion("completion, beams", "Once upon a time", object{"use_beam_search": true, "n": 2})),
	)
}

// Images are chats with images, for a model that accepts several images in a request.
func Images(m Media) []Request {
	small, photo, other := m.image("small.png"), m.image("photo.jpg"), m.image("photo2.jpg")
	question := text("What do you see?")
	many := []any{question}
	for i := range 8 {
		many = append(many, []object{small, photo, other}[i%3])
	}
	return []Request{
		chat("one image", nil, photo, question),
		chat("an image alone", nil, photo),
		chat("another image", nil, other, question),
		chat("two images", nil, photo, other, question),
		chat("two images, swapped", nil, other, photo, question),
		chat("images between texts", nil, text("First"), photo, text("then"), small, text("and"), other, text("What is that?")),
		chat("eight images", nil, many...),
		chat("ten images", nil, append(many, photo, other)...),
		chat("an image twice", nil, photo, photo, question),
		chat("a large image", nil, m.image("large.png"), question),
		chat("WebP", nil, m.image("photo.webp"), question),
		chat("GIF", nil, m.image("moving.gif"), question),
		chat("BMP", nil, m.image("photo.bmp"), question),
		chat("a file", nil, imageURL(m.fileURL("photo.jpg")), question),
		chat("files and data", nil, imageURL(m.fileURL("photo.jpg")), small, imageURL(m.fileURL("small.png")), question),
		talk("an image in a system message", nil, message("system", []any{text("Look:"), photo}), message("user", "Hello")),
		talk("images of old turns", nil, message("user", []any{photo, question}), message("assistant", "A photo."), message("user", []any{other, text("And this?")})),
		talk("a tool's image", object{"tools": []any{weather}},
			message("user", "Draw"),
			object{"role": "assistant", "content": nil, "tool_calls": []any{object{"id": "call_1", "type": "function", "function": object{"name": "weather", "arguments": `{"city":"Rome"}`}}}},
			object{"role": "tool", "tool_call_id": "call_1", "content": []any{text("Here:"), photo}},
		),
		chat("no type", nil, object{"image_url": photo["image_url"]}, question),
		chat("detail", nil, object{"type": "image_url", "image_url": with(photo["image_url"].(object), object{"detail": "low"})}, question),
		chat("a client's uuid", nil, with(photo, object{"uuid": "mine"}), question),
		chat("image: sampled with a seed", object{"temperature": 0.9, "top_p": 0.95, "seed": 7}, photo, question),
		chat("image: two sampled answers", object{"temperature": 0.9, "n": 2, "seed": 7}, photo, question),
		chat("image: logprobs", object{"logprobs": true, "top_logprobs": 3}, photo, question),
		chat("image: echo", object{"echo": true}, photo, question),
		chat("image: json_schema", object{"max_tokens": 60, "response_format": object{"type": "json_schema", "json_schema": object{
			"name": "answer", "schema": object{"type": "object", "properties": object{"yes": object{"type": "boolean"}}, "required": []string{"yes"}, "additionalProperties": false},
		}}}, photo, question),
		chat("image: tools, required", object{"tools": []any{weather}, "tool_choice": "required", "max_tokens": 80}, photo, question),
		chat("image: one token", object{"max_tokens": 1}, photo, question),
		chat("image: cache_salt", object{"cache_salt": "pepper"}, photo, question),
		chat("image: many tokens", object{"ignore_eos": true, "max_tokens": 200}, photo, question),
		once(chat("image: prompt_logprobs", object{"prompt_logprobs": 1}, photo, question)),
	}
}

// Videos are chats with videos.
func Videos(m Media) []Request {
	question := text("What happens?")
	return []Request{
		chat("frames", nil, m.frames(), question),
		chat("frames and an image", nil, m.image("photo.jpg"), m.frames(), question),
		chat("a video", nil, m.video("silent.mp4"), question),
		chat("the sound is not asked for", nil, m.video("loud.mp4"), question),
	}
}

// Audios are chats with audio.
func Audios(m Media) []Request {
	question := text("What do you hear?")
	tone, other := m.audio("sound.wav"), m.audio("sound2.wav")
	return []Request{
		chat("one audio", nil, tone, question),
		chat("another audio", nil, other, question),
		chat("two audios", nil, tone, other, question),
		chat("audio and an image", nil, tone, m.image("photo.jpg"), question),
		chat("input_audio", nil, object{"type": "input_audio", "input_audio": object{"data": strings.SplitN(m.file("sound.wav"), ",", 2)[1], "format": "wav"}}, question),
		chat("audio: two sampled answers", object{"temperature": 0.9, "n": 2, "seed": 7}, tone, question),
	}
}

// Sounds are videos whose sound is used too; engines need --trust-request-mm-kwargs from 0.31.0 on.
func Sounds(m Media) []Request {
	heard := object{"mm_processor_kwargs": object{"use_audio_in_video": true}}
	question := text("What happens?")
	return []Request{
		chat("a video with its sound", heard, m.video("loud.mp4"), question),
		chat("a video with its sound, and an image", heard, m.image("photo.jpg"), m.video("loud.mp4"), question),
	}
}

// once says that a request has no streamed form.
func once(r Request) Request {
	r.Once = true
	return r
}
