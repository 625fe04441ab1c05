#!/usr/bin/env python3
"""Records how vLLM's own parser reads content parts, for thousands of them.

    VENV/bin/python integration/oracle/parts.py epdhandler/internal/media/testdata/parts.jsonl.gz

It runs where vLLM is installed (examples/vllm/README.md says how to install the CPU
build) and starts no engine. Every part is put into a chat request, which vLLM's request
model and message parser read as if every --enable-… flag were set. The functions that
fetch or decode media are replaced: they record their arguments. The output of one vLLM
release is always the same.

The first line of the output is {"vllm": version}. Then one part per line:

    {"part": …, "alone": result, "beside": result}

"alone" is the result for a user message with only this part, "beside" for one with a text
part before it. vLLM rejects some parts alone that it accepts beside a text part, or in a
message with members that OpenAI's messages do not have. Lines with "role" have the results for a
message of that role; all others are of role user. A result is one of

    {"status": 400}             the status of vLLM's answer
    {"load": [[kind, value, uuid], …], "template": …}

"load" is what vLLM loads: the kind in vLLM's parser (image, image_embeds, image_pil,
audio, …), the value in the request ("input_audio" as a data URL) and the uuid that the
engine uses, or null. If the value is null, the engine must have the media in its cache
under the uuid. "template" is what the chat template gets for the part, with the members
of the part that are passed on; null if vLLM skips the part.
"""

import asyncio
import gzip
import io
import itertools
import json
import logging
import sys

import vllm
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.renderers import chat_utils

# The members that vLLM reads as media, and their types, as in its source.
MEDIA = sorted(chat_utils._MEDIA_CONTENT_PART_KEYS)
TYPES = sorted(chat_utils.MM_PARSER_MAP)

NO_TYPES = [None, "file", "input_file", "vision_chunk", "image", "IMAGE_URL", "unknown", ""]
NO_TYPES += [5, ["image_url"], {}]
ABSENT = "absent"
UUIDS = [ABSENT, "U", "", None, 7, 0, False, ["U"]]


class Recorder(chat_utils.AsyncMultiModalContentParser):
    """vLLM's parser of parts, which records instead of fetching and decoding."""

    def __init__(self):
        super().__init__(tracker=None)
        self.loads = []

    class model_config:
        enable_prompt_embeds = False  # if true, some words are reserved in text

    def _note(kind):
        def parse(self, value, uuid=None):
            self.loads.append([kind, value, uuid])

        return parse

    # input_audio is not replaced: it makes a data URL and passes it to parse_audio.
    for _name in chat_utils.BaseMultiModalContentParser.__abstractmethods__ - {"parse_input_audio"}:
        if _name.startswith("parse_"):
            locals()[_name] = _note(_name.removeprefix("parse_"))


class Tracker:
    def __init__(self):
        self.parser = Recorder()

    def create_parser(self, mm_processor_kwargs=None):
        return self.parser


def ask(text, role, beside):
    """How vLLM reads a part, given as JSON text, in a message of a role."""
    before = '{"type":"text","text":"t"},' if beside else ""
    call = '"tool_call_id":"c",' if role == "tool" else ""
    message = f'{{"role":"{role}",{call}"content":[{before}{text}]}}'
    body = json.loads(f'{{"model":"m","messages":[{message}]}}')
    tracker = Tracker()
    try:
        request = ChatCompletionRequest.model_validate(body)
        parsed = chat_utils._parse_chat_message_content(
            request.messages[0], tracker, content_format="openai", interleave_strings=False
        )
    except Exception as error:
        return {"status": create_error_response(error).error.code}
    content = parsed[0]["content"]
    if isinstance(content, str):  # of a tool: texts are joined
        text = content.removeprefix("t").removeprefix("\n") if beside else content
        template = {"type": "text", "text": text}
    else:
        template = (content[1:] if beside else content) or None
        template = template and template[0]
    return {"load": tracker.parser.loads, "template": template}


def write(**members):
    """The JSON text of a part with these members, in their order."""
    return json.dumps({k: v for k, v in members.items() if v != ABSENT}, separators=(",", ":"))


def natural(member):
    """A member's value as clients write it. It contains the member's name."""
    if member == "input_audio":
        return {"data": member, "format": "wav"}
    if member.endswith("_url"):
        return {"url": member}
    return member


def values(member):
    """All values that are tried for a member."""
    yield natural(member)
    yield from (member, "", None, [], [member], [{"url": member}], {}, 5, True)
    for name in ("url", "data"):
        yield from ({name: member}, {name: None}, {name: ""}, {name: 5}, {name: [member]}, {"url": member, name: "n"})
    yield from ({"url": member, "detail": "high", "format": "f"}, {"data": member, "format": "wav;base64,RVZJTA=="})
    yield from ({"data": member, "format": None}, {"data": None, "format": "wav"}, {"data": "", "format": "mp3"})
    yield from ({"image_grid_thw": [1, 8, 8]}, {"image_embeds": member, "image_grid_thw": member})


def singles():
    for member in MEDIA:
        types = [ABSENT, *NO_TYPES, *TYPES]
        for value, kind in itertools.product(values(member), types):
            for uuid in UUIDS[:4]:
                yield write(type=kind, **{member: value}, uuid=uuid)
        for kind, uuid in itertools.product((ABSENT, member, "text"), UUIDS[4:]):
            for value in (natural(member), None):
                yield write(uuid=uuid, **{member: value}, type=kind)


def pairs():
    for one, other in itertools.permutations(MEDIA, 2):
        types = (ABSENT, None, one, other, "text", "input_image", "unknown")
        forms = [(natural(one), natural(other)), (one, other)]
        forms += [(natural(one), None), (None, natural(other)), (None, None)]
        for (a, b), kind, uuid in itertools.product(forms, types, UUIDS[:4]):
            yield write(type=kind, **{one: a, other: b}, uuid=uuid)


def triples():
    for members in itertools.permutations(MEDIA, 3):
        for kind, uuid in itertools.product((ABSENT, members[0], members[2]), (ABSENT, "U")):
            yield write(**{m: natural(m) for m in members}, type=kind, uuid=uuid)


def others():
    """Parts without media, media beside text, and members that vLLM does not know."""
    image = {"image_url": natural("image_url")}
    for kind, uuid in itertools.product([ABSENT, *NO_TYPES, *TYPES], UUIDS):
        yield write(type=kind, uuid=uuid)
        yield write(type=kind, text="words", uuid=uuid)
        yield write(type=kind, text="words", **image, uuid=uuid)
    for kind in (ABSENT, *TYPES):
        for text in ({"refusal": "no"}, {"thinking": "hm", "closed": True}, {"name": "tool"}, {"tool_reference": "r"}):
            for uuid in UUIDS[:2]:
                yield write(type=kind, **text, uuid=uuid)
                yield write(type=kind, **text, **image, uuid=uuid)
        for data in ("D", None, 5, {}):
            for uuid in UUIDS[:2]:
                yield write(type=kind, data=data, uuid=uuid)
                yield write(type=kind, data=data, prompt_embeds="P", uuid=uuid)
    extra = ("detail", "cache_control", "max_pixels", "fps", "role", "content", "file", "prompt_cache_breakpoint", "x")
    for member, name, kind in itertools.product(MEDIA, extra, (True, False)):
        yield write(type=member if kind else ABSENT, **{member: natural(member), name: "high"})
    for name in (*extra, "type", "file_id"):
        yield write(type="file", file={"file_data": "data:image/png;base64,AA", name: "x"})
        yield write(**{"type": "text", "text": "words", name: "high"})
    for name in MEDIA:  # if there are two, the last one counts
        yield f'{{"{name}":"first","{name}":"last"}}'
        yield f'{{"{name}":{{"url":"first","url":"last"}},"type":"{name}","type":"{name}"}}'
        yield f'{{"type":"text","type":"{name}","text":"words","{name}":{json.dumps(natural(name))}}}'
        yield f'{{"uuid":"U","uuid":null,"type":"text","text":"words","{name}":{json.dumps(natural(name))}}}'
    yield from ('"words"', '""', "5", "null", "true", "[]", '[{"type":"text","text":"words"}]', "{}")


def rows():
    parts = list(dict.fromkeys(itertools.chain(singles(), pairs(), triples(), others())))
    for text in parts:
        yield text, "user"
    for role in ("system", "developer", "assistant", "tool", "function", "unknown"):
        for text in parts[:: len(parts) // 250]:
            yield text, role


def main(path):
    logging.disable(logging.CRITICAL)
    compact = {"separators": (",", ":"), "ensure_ascii": True}
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as out:
        out.write(json.dumps({"vllm": vllm.__version__.partition("+")[0]}, **compact).encode() + b"\n")
        for text, role in rows():
            results = {"alone": ask(text, role, False), "beside": ask(text, role, True)}
            named = {} if role == "user" else {"role": role}
            # The part is written as it was sent: a member may occur twice.
            rest = json.dumps({**named, **results}, **compact)[1:]
            out.write(f'{{"part":{text},{rest}\n'.encode())
    with open(path, "wb") as file:
        file.write(raw.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
