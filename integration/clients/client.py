"""Sends the requests of openai_test.go with the OpenAI SDK for Python, and prints the
results as JSON. The SDK itself reads OPENAI_BASE_URL and OPENAI_API_KEY."""

import json

import openai

client = openai.OpenAI(max_retries=0)


def ask(text, image, **options):
    return client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": text},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}", "detail": "low"}},
                ],
            },
        ],
        max_completion_tokens=100,
        **options,
    )


def whole(text, image):
    try:
        answer = ask(text, image)
    except openai.APIStatusError as error:
        return refusal(error)
    choice = answer.choices[0]
    return {
        "id": answer._request_id,
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "tokens": answer.usage.total_tokens,
    }


def stream(text, image, leave=False):
    try:
        chunks = ask(text, image, stream=True, stream_options={"include_usage": True})
    except openai.APIStatusError as error:
        return refusal(error)
    seen = {"id": chunks.response.headers["x-request-id"], "text": ""}
    try:
        with chunks:
            for chunk in chunks:
                for choice in chunk.choices:
                    seen["text"] += choice.delta.content or ""
                    seen["finish"] = choice.finish_reason
                if chunk.usage:
                    seen["tokens"] = chunk.usage.total_tokens
                if leave and seen["text"]:
                    break
    except openai.APIError as error:
        seen["message"] = error.message
    return seen


def refusal(error):
    return {
        "id": error.request_id,
        "status": error.status_code,
        "message": error.body["message"],
        "param": error.param,
    }


print(
    json.dumps(
        {
            "models": [model.id for model in client.models.list()],
            "stream": stream("What is in these pictures? 你好", "BBBB"),
            "whole": whole("What is in these pictures? 你好", "BBBB"),
            "refusedStream": stream("Refuse.", "LARG"),
            "refused": whole("Refuse.", "LARG"),
            "broken": stream("Break off.", "BBBB"),
            "left": stream("Go on. " * 1000, "BBBB", leave=True),
        }
    )
)
