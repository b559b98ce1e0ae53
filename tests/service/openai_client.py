"""What OpenAI's own Python client gets from a running service with one edit, version 1. Usage: openai_client.py BASE_URL"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "Ada speaks"}]

# Models.
models = [model.id for model in client.models.list()]
NAME = models[0]
assert models[1:] == [f"{NAME}@1", f"{NAME}@0"], models
assert client.models.retrieve(f"{NAME}@0").owned_by == "amend"

# A completion, whole and streamed; the newest version and a pinned one.
asked = dict(model=NAME, prompt="Ada speaks", max_tokens=24, temperature=0, seed=1)
whole = client.completions.create(**asked, logprobs=2)
choice = whole.choices[0]
assert (whole.object, whole.system_fingerprint, whole.model) == ("text_completion", "v1", NAME), whole
assert (choice.finish_reason, choice.index) == ("length", 0), choice
assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (10, 24, 34), whole.usage
assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == 24, choice.logprobs
assert all(2 <= len(top) <= 3 for top in choice.logprobs.top_logprobs), choice.logprobs
assert choice.logprobs.text_offset == list(range(24)), choice.logprobs.text_offset
chunks = list(client.completions.create(**asked, stream=True))
assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text, chunks
assert {chunk.system_fingerprint for chunk in chunks} == {"v1"}, chunks
assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length", chunks
base = client.completions.create(**{**asked, "model": f"{NAME}@0"})
assert base.system_fingerprint == "v0" and base.choices[0].text != choice.text, base

# Stop strings, several prompts, several texts, token ids, and a seed.
cut = choice.text[8:10]
stopped = client.completions.create(**asked, stop=[cut])
assert stopped.choices[0].finish_reason == "stop", stopped
assert stopped.choices[0].text == choice.text[: choice.text.index(cut)], stopped
several = client.completions.create(**{**asked, "prompt": ["Ada speaks", "Bob speaks"]})
assert [choice.index for choice in several.choices] == [0, 1] and several.choices[0].text == choice.text, several
sampled = dict(model=NAME, prompt="Ada speaks", max_tokens=12, n=3, seed=7)
texts = [choice.text for choice in client.completions.create(**sampled).choices]
assert len(set(texts)) == 3, texts
assert [choice.text for choice in client.completions.create(**sampled).choices] == texts
streamed = ["", "", ""]
for chunk in client.completions.create(**sampled, stream=True):
    streamed[chunk.choices[0].index] += chunk.choices[0].text
assert streamed == texts, (streamed, texts)
assert client.completions.create(**{**asked, "prompt": [3, 4, 5]}).usage.prompt_tokens == 3

# A chat answer, whole and streamed.
asked = dict(model=NAME, messages=MESSAGES, max_completion_tokens=20, temperature=0)
whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
choice = whole.choices[0]
assert (choice.message.role, choice.finish_reason, whole.system_fingerprint) == ("assistant", "length", "v1"), whole
content = choice.logprobs.content
assert len(content) == 20 and all(len(token.top_logprobs) == 3 for token in content), content
assert bytes(byte for token in content for byte in token.bytes).decode(errors="replace")[:5] == choice.message.content[:5]
chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content, chunks
assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 20, chunks[-1]
cut = choice.message.content[6:8]
with client.chat.completions.stream(**asked, stop=cut) as stream:
    stream.until_done()
    ended = stream.get_final_completion().choices[0]
assert ended.finish_reason == "stop", ended
assert ended.message.content == choice.message.content[: choice.message.content.index(cut)], ended
extra = client.chat.completions.create(**asked, extra_body={"repetition_penalty": 1.9, "min_p": 0.1, "top_k": 20})
assert extra.choices[0].message.content != choice.message.content, extra


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind}")


# Errors are those that the client knows.
error = refused(openai.NotFoundError, lambda: client.completions.create(model="gpt-4", prompt="x"))
assert (error.code, error.type, error.param) == ("model_not_found", "invalid_request_error", "model"), error.body
refused(openai.NotFoundError, lambda: client.completions.create(model=f"{NAME}@9", prompt="x"))
refused(openai.NotFoundError, lambda: client.embeddings.create(model=NAME, input="x"))
error = refused(openai.BadRequestError, lambda: client.completions.create(model=NAME, prompt="x", temperature=9))
assert error.param == "temperature" and "Given: 9" in error.message, error.body
error = refused(openai.BadRequestError, lambda: client.completions.create(model=NAME, prompt="x" * 5000))
assert error.code == "context_length_exceeded", error.body
error = refused(openai.BadRequestError, lambda: client.chat.completions.create(**asked, tools=[
    {"type": "function", "function": {"name": "f", "parameters": {}}}]))
assert error.param == "tools", error.body
print(f"openai {openai.__version__}: all as its client expects")
