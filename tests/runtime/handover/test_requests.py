"""Which raw requests a handover takes apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.handover.requests import generates, objection

TEXT = {"type": "text", "text": "hi"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize("prompt", ["", "the sea", [5], [5, 6, 7]])
@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_texts_and_tokens_are_taken(path: str, prompt: object) -> None:
    assert generates(path)
    assert objection(path, {"prompt": prompt, "n": 1, "lora": []}) == ""


@pytest.mark.parametrize(
    "prompt", [None, 5, [], [True], ["a", "b"], [5, "a"], [[5], [6]], {"prompt_string": "a", "multimodal_data": ["AA"]}]
)
def test_other_prompts_are_the_decoders(prompt: object) -> None:
    assert "prompt" in objection("/completion", {"prompt": prompt})


@pytest.mark.parametrize("content", [None, "hi", "", [TEXT], [TEXT, TEXT], [], [{"text": "hi"}]])
def test_messages_of_text_are_taken(content: object) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "tool_calls": []}]
    assert objection("/v1/chat/completions", {"messages": messages, "tools": [{}]}) == ""


@pytest.mark.parametrize("messages", [None, "hi", {}, ["hi"], [{"content": [TEXT, PICTURE]}], [{"content": {}}]])
def test_messages_of_more_are_the_decoders(messages: object) -> None:
    assert "more than text" in objection("/v1/chat/completions", {"messages": messages})


@pytest.mark.parametrize("more", [{"n": 2}, {"n_cmpl": 3}, {"lora": [{"id": 0, "scale": 0.5}]}])
def test_requests_that_change_what_a_cache_is(more: dict[str, Any]) -> None:
    assert objection("/completion", {"prompt": "a", **more})


def test_other_paths() -> None:
    assert generates("/infill") and objection("/infill", {"prompt": "a"})
    assert not any(map(generates, ("/tokenize", "/v1/embeddings", "/apply-template", "/v1/rerank")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from(["content", "type", "n"]), parts),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["prompt", "messages", "n", "lora"]), JSON))
def test_any_body_has_an_answer(body: dict[str, Any]) -> None:
    for path in ("/completion", "/v1/chat/completions"):
        assert isinstance(objection(path, body), str)
