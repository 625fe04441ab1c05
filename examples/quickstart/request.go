package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"strings"
	"time"
)

const question = "What is in this picture?"

// body is an ordinary request for vLLM, without anything about EPD.
func body() string {
	return fmt.Sprintf(`{"model":"fake","stream":true,"messages":[{"role":"user","content":[`+
		`{"type":"text","text":%q},{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}]}]}`,
		question, base64.StdEncoding.EncodeToString(picture()))
}

// picture is a PNG, small enough for a command line.
func picture() []byte {
	img := image.NewPaletted(image.Rect(0, 0, 8, 8), color.Palette{color.White, color.Black})
	for i := range 8 {
		img.SetColorIndex(i, i, 1)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic(err) // writing to a buffer does not fail
	}
	return b.Bytes()
}

// ask sends the request and prints the answer as it arrives. It returns the request id
// in the log.
func ask(p *proxy, to printer) (id string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/v1/chat/completions", strings.NewReader(body()))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := p.client.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return "", fmt.Errorf("the answer is %s: %s", answer.Status, text)
	}
	return answer.Header.Get("X-Request-Id"), printStream(answer.Body, to)
}

// printStream prints the text of a stream of server-sent events.
func printStream(stream io.Reader, to printer) error {
	done := false
	lines := bufio.NewScanner(stream)
	for lines.Scan() { // to the end: otherwise the request counts as canceled by the client
		data, isData := strings.CutPrefix(lines.Text(), "data: ")
		done = done || data == "[DONE]"
		if !isData || done { // events are followed by an empty line
			continue
		}
		var chunk struct {
			Choices []struct {
				Delta struct{ Content string }
			}
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		for _, choice := range chunk.Choices {
			to.printf("%s", choice.Delta.Content)
		}
	}
	if !done {
		return errors.Join(errors.New("the answer broke off"), lines.Err())
	}
	return nil
}

// curl is the same request as a shell command.
func curl(p *proxy) string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	return fmt.Sprintf("curl -sSN --cacert %s %s \\\n  -H 'Content-Type: application/json' \\\n  -d %s",
		quote(p.root), p.url+"/v1/chat/completions", quote(body()))
}
