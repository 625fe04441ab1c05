package fakevllm

import (
	"net/http"
	"unicode/utf8"
)

// stream answers with server-sent events, in pieces that end within events.
func (x *exchange) stream(texts ...string) *answer {
	header := http.Header{}
	header.Set("Content-Type", "text/event-stream; charset=utf-8")
	return &answer{http.StatusOK, header, pieces(x.events(texts...))}
}

// events are the chunks of a stream up to and including [DONE].
func (x *exchange) events(texts ...string) [][]byte {
	var events [][]byte
	created := x.envelope()
	add := func(choices []choice, u *usage) {
		chunk := created
		chunk.Choices, chunk.Usage = choices, u
		events = append(events, event(marshal(chunk)))
	}
	created.Object = "text_completion"
	if x.isChat() {
		created.Object = "chat.completion.chunk"
		empty := ""
		for n := range texts {
			add([]choice{{Index: n, Delta: &message{Role: "assistant", Content: &empty}}}, nil)
		}
	}
	for n, text := range texts {
		for _, token := range tokens(text) {
			add([]choice{x.delta(n, token)}, nil)
		}
		stop := "stop"
		last := x.delta(n, "")
		last.FinishReason = &stop
		add([]choice{last}, nil)
	}
	if x.includeUsage() {
		add([]choice{}, x.usage(texts))
	}
	return append(events, event([]byte("[DONE]")))
}

// failingStream is how vLLM reports an error after a stream has begun: with the status 200
// and, in a chat whose request is valid, an event with the role before the error.
func (x *exchange) failingStream(e *apiError) *answer {
	a := x.stream("")
	events := x.events("")
	done := events[len(events)-1]
	events = events[:0]
	if x.isChat() && !e.statusSent {
		events = events[:1]
	}
	a.pieces = pieces(append(events, event(marshal(e.body)), done))
	return a
}

func (x *exchange) delta(n int, text string) choice {
	if x.isChat() {
		return choice{Index: n, Delta: &message{Content: &text}}
	}
	return choice{Index: n, Text: &text}
}

func (x *exchange) includeUsage() bool {
	options, err := parseObject(x.members["stream_options"])
	return err == nil && options.is("include_usage", "true")
}

func event(data []byte) []byte {
	return append(append([]byte("data: "), data...), "\n\n"...)
}

// tokens cuts a text into pieces of three characters.
func tokens(text string) []string {
	var tokens []string
	runes := []rune(text)
	for len(runes) > 0 {
		n := min(3, len(runes))
		tokens = append(tokens, string(runes[:n]))
		runes = runes[n:]
	}
	return tokens
}

// pieces cuts a stream once within every event, and nowhere else: no piece but
// the last ends at the end of an event, and most contain the end of one event and the begin of the next.
func pieces(events [][]byte) [][]byte {
	var pieces [][]byte
	var rest []byte
	for _, e := range events {
		at := awkwardCut(e)
		pieces = append(pieces, append(rest, e[:at]...))
		rest = e[at:len(e):len(e)]
	}
	return append(pieces, rest)
}

// awkwardCut is in the middle of the event's first multibyte character or, if there
// is none, in the middle of the event.
func awkwardCut(event []byte) int {
	for at, b := range event {
		if b >= utf8.RuneSelf {
			return at + 1
		}
	}
	return len(event) / 2
}
