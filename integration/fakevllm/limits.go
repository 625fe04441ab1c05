package fakevllm

// checkLimits checks the limits of the engine: images and length of the prompt.
func (x *exchange) checkLimits() error {
	if falsy(x.members["prompt"]) && !x.isChat() && !x.members.has("prompt_embeds") {
		return badRequest("You must pass at least one prompt")
	}
	if most := x.engine.options.MaxImages; most > 0 && x.images() > most {
		return badRequest("At most %d image(s) may be provided in one prompt. Set `--limit-mm-per-prompt` to increase this limit.", most)
	}
	return x.checkContext()
}

// checkContext checks that the prompt fits, and that the maximum length of the answer alone does.
func (x *exchange) checkContext() error {
	o, room := x.members, x.engine.options.MaxModelLen
	if room == 0 {
		return nil
	}
	wanted := "max_tokens"
	if x.isChat() && o.has("max_completion_tokens") {
		wanted = "max_completion_tokens"
	}
	for _, name := range []string{wanted, "truncate_prompt_tokens"} {
		if n := lax(o[name]); n > room {
			return badRequest("%s=%d cannot be greater than max_model_len=%d.", name, n, room)
		}
	}
	if n := x.length(); n > room {
		return badRequest("This model's maximum context length is %d tokens. However, your prompt contains %d input tokens", room, n)
	}
	return nil
}

func (x *exchange) images() (n int) {
	for _, i := range x.prompt.items {
		if i.modality == "image" {
			n++
		}
	}
	return n
}

// length is that of the prompt after truncation, where -1 truncates it so that one token still fits.
func (x *exchange) length() int {
	if !x.members.has("truncate_prompt_tokens") {
		return x.uncut()
	}
	kept := lax(x.members["truncate_prompt_tokens"])
	if kept == -1 {
		kept = x.engine.options.MaxModelLen - 1
	}
	return min(x.uncut(), kept)
}

// uncut is the length of the prompt before truncation, or of the longest of several. A byte of text is a
// token here; media are not counted.
func (x *exchange) uncut() (longest int) {
	if x.isChat() {
		for _, text := range x.prompt.texts {
			longest += len(text)
		}
		return longest
	}
	for _, prompt := range prompts(x.members["prompt"]) {
		text, _ := stringOf(prompt)
		tokens, _ := array(prompt)
		longest = max(longest, len(text), len(tokens))
	}
	return longest
}
