"""Several answers become one, whole and streamed."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trilithon.serve.openai.choices import Merging, merged, with_seed


def answer(text: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    return {"id": text, "choices": [{"index": 0, "message": {"content": text}}], "usage": usage}


def test_every_choice_and_the_prompt_once() -> None:
    whole = merged([answer("a", 2), answer("b", 3)])
    assert [(each["index"], each["message"]["content"]) for each in whole["choices"]] == [(0, "a"), (1, "b")]
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert whole["id"] == "a"


def test_each_answer_has_its_own_seed() -> None:
    assert [with_seed({"seed": 2**32 - 1}, choice)["seed"] for choice in (0, 1)] == [2**32 - 1, 0]
    assert with_seed({"seed": -1}, 3) == {"seed": -1}
    assert with_seed({}, 3) == {}


@given(st.lists(st.integers(min_value=0, max_value=400), max_size=6), st.booleans())
def test_streams_are_numbered_wherever_they_are_cut(cuts: list[int], usage: bool) -> None:
    def stream(name: str) -> bytes:
        pieces = [{"id": name, "choices": [{"index": 0, "delta": {"content": text}}]} for text in (name, "ü", "")]
        counts = [{"id": name, "choices": [], "usage": answer("", 2)["usage"]}] if usage else []
        return "".join(f"data: {json.dumps(each)}\n\n" for each in [*pieces, *counts]).encode() + b"data: [DONE]\n\n"

    merging, found = Merging(), b""
    for choice, name in enumerate(("first", "second")):
        content = stream(name)
        edges = sorted({0, len(content), *(cut % len(content) for cut in cuts)})
        for start, end in pairwise(edges):
            found += merging.feed(content[start:end], choice)
    found += merging.finish()
    *messages, done, rest = found.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    bodies = [json.loads(message.removeprefix("data: ")) for message in messages]
    assert {body["id"] for body in bodies} == {"first"}
    numbered = [(each["index"], each["delta"]["content"]) for body in bodies for each in body["choices"]]
    assert numbered == [(0, "first"), (0, "ü"), (0, ""), (1, "second"), (1, "ü"), (1, "")]
    totals = [body["usage"]["completion_tokens"] for body in bodies if body.get("usage")]
    assert totals == ([4] if usage else [])
