//go:build unix

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"slices"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// unseen are requests about one of each kind of media that a model accepts. Each number gives
// media that no engine has seen.
func (m model) unseen(number int) []requests.Request {
	const tokens = 24
	seed := uint64(number)
	list := []requests.Request{requests.AboutImage(pattern(seed), tokens)}
	if slices.Contains(m.media, "video") {
		list = append(list, requests.AboutFrames(tokens, frame(seed), frame(seed+1000)))
	}
	if slices.Contains(m.media, "audio") {
		list = append(list, requests.AboutSound(noise(seed), tokens))
	}
	for i := range list {
		list[i].Name = fmt.Sprintf("%s (%d)", list[i].Name, number)
	}
	return list
}

// patterns are images that no engine has seen.
func patterns(n int) (list [][]byte) {
	for range n {
		list = append(list, pattern(rand.Uint64()))
	}
	return list
}

// pattern is a PNG image.
func pattern(seed uint64) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, picture(seed)); err != nil {
		panic(err) // writing to a buffer does not fail
	}
	return b.Bytes()
}

// frame is a JPEG image.
func frame(seed uint64) []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, picture(seed), nil); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func picture(seed uint64) image.Image {
	random := rand.New(rand.NewPCG(seed, seed))
	picture := image.NewRGBA(image.Rect(0, 0, 56, 56))
	for y := range 56 {
		for x := range 56 {
			picture.Set(x, y, color.RGBA{uint8(random.Uint32()), uint8(4 * x), uint8(4 * y), 255})
		}
	}
	return picture
}

// noise is half a second of sound, as a WAV file: one channel, 16 bits, 16 kHz.
func noise(seed uint64) []byte {
	const rate, samples = 16000, 8000
	random := rand.New(rand.NewPCG(seed, seed))
	wav := []byte("RIFF")
	wav = binary.LittleEndian.AppendUint32(wav, 36+2*samples)
	wav = append(wav, "WAVEfmt "...)
	wav = binary.LittleEndian.AppendUint32(wav, 16)
	for _, v := range []uint16{1, 1} { // PCM, channels
		wav = binary.LittleEndian.AppendUint16(wav, v)
	}
	for _, v := range []uint32{rate, 2 * rate} { // samples and bytes in a second
		wav = binary.LittleEndian.AppendUint32(wav, v)
	}
	for _, v := range []uint16{2, 16} { // bytes and bits of a sample
		wav = binary.LittleEndian.AppendUint16(wav, v)
	}
	wav = append(wav, "data"...)
	wav = binary.LittleEndian.AppendUint32(wav, 2*samples)
	for range samples {
		wav = binary.LittleEndian.AppendUint16(wav, uint16(random.Uint32()))
	}
	return wav
}
