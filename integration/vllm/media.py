#!/usr/bin/env python3
"""Makes the images, sounds and videos of the requests, with the same bytes each time.

Usage: media.py DIR

It needs only packages that vLLM needs.
"""

import io
import pathlib
import sys
import wave

import av
import numpy
from PIL import Image

RATE = 16000  # of sound, per second


def picture(seed, width, height):
    """Smooth like a photo, with some noise."""
    random = numpy.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), numpy.uint8))
    smooth = numpy.asarray(coarse.resize((width, height), Image.BICUBIC), numpy.int16)
    noise = random.integers(-12, 13, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(numpy.uint8))


def sound(seed, seconds):
    """A chord that slides, as 16 bit samples."""
    random = numpy.random.default_rng(seed)
    t = numpy.arange(int(RATE * seconds)) / RATE
    tones = [numpy.sin(2 * numpy.pi * (f * t + slide * t * t)) for f, slide in random.uniform(150, 900, (4, 2))]
    return (6000 * sum(tones)).clip(-32768, 32767).astype(numpy.int16)


def write_wav(path, samples):
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(RATE)
        w.writeframes(samples.tobytes())


def write_coded(path, codec=None, samples=None, frames=()):
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:  # otherwise Ogg's serial number is random
        sound_stream = codec and container.add_stream(codec, rate=RATE, layout="mono")
        video_stream = frames and container.add_stream("mpeg4", rate=len(frames))  # a second of video
        if frames:
            video_stream.width, video_stream.height = frames[0].size
            video_stream.pix_fmt = "yuv420p"
            for f in [*map(av.VideoFrame.from_image, frames), None]:
                container.mux(video_stream.encode(f))
        if codec:
            frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            resampler = av.AudioResampler(sound_stream.format, "mono", RATE, sound_stream.frame_size)
            for f in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(sound_stream.encode(f))


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, seed, width, height in [
        ("small.png", 1, 64, 64),
        ("tiny.png", 2, 28, 28),
        ("large.png", 3, 1000, 700),
        ("photo.jpg", 4, 256, 256),
        ("photo2.jpg", 5, 256, 256),
        ("photo.webp", 6, 200, 120),
        ("photo.bmp", 7, 90, 120),
        ("2x2.png", 8, 2, 2),
        ("1000x3.png", 9, 1000, 3),
        *((f"frame{n}.jpg", 10 + n, 112, 112) for n in range(4)),
    ]:
        picture(seed, width, height).save(directory / name)
    moving = [picture(20 + n, 100, 80) for n in range(2)]
    moving[0].save(directory / "moving.gif", save_all=True, append_images=moving[1:], duration=200)
    whole = io.BytesIO()
    picture(30, 64, 64).save(whole, "PNG")
    (directory / "truncated.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])

    write_wav(directory / "sound.wav", sound(1, 1))
    write_wav(directory / "sound2.wav", sound(2, 0.7))
    write_coded(directory / "sound.mp3", "mp3", sound(3, 1))
    write_coded(directory / "sound.ogg", "libopus", sound(4, 1))
    write_coded(directory / "sound.flac", "flac", sound(5, 1))

    frames = [Image.blend(picture(40, 112, 112), picture(41, 112, 112), n / 7) for n in range(8)]
    write_coded(directory / "silent.mp4", frames=frames)
    write_coded(directory / "loud.mp4", "aac", sound(6, 1), frames[::-1])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
