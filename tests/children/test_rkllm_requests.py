"""Request bodies for the RKLLM server: whatever comes is a request or an error of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.children.rkllm_answering import Generate
from trilithon.children.rkllm_requests import read_chat, read_completion, read_inputs
from trilithon.children.rkllm_structs import GREEDY
from trilithon.children.rkllm_template import ModelText
from trilithon.children.serving import ApiError
from trilithon.children.wire import Chat, Completion

TEXT = ModelText(None, None, "there are no files")
NO_VISION = (None, "no encoder")

NAMES = st.sampled_from(
    [
        *(
            "prompt",
            "n_predict",
            "max_tokens",
            "stop",
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "n",
            "grammar",
            "tools",
        ),
        *(
            "logit_bias",
            "n_probs",
            "ignore_eos",
            "cache_prompt",
            "messages",
            "chat_template_kwargs",
            "logprobs",
            "input",
        ),
        *("response_format", "mirostat", "repeat_penalty", "tool_choice", "top_logprobs", "repeat_last_n", "min_p"),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image_url", "url", "function", "name"]), inner
        )
    ),
    max_leaves=6,
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=6)


@given(BODIES)
def test_any_body_is_a_request_or_our_error(body):
    for read in (
        lambda: read_completion({"prompt": [5, 6]} | body, context=64, vocabulary=320, text=TEXT),
        lambda: (
            read_chat(
                {"messages": [{"role": "user", "content": "x"}]} | body,
                context=64,
                text=TEXT,
                thinking=True,
                vision=NO_VISION,
            ).generate
        ),
    ):
        try:
            request = read()
        except ApiError as error:
            assert 400 <= error.status < 600
            continue
        assert isinstance(request, Generate)
        assert 1 <= request.limit <= 64


@given(BODIES)
def test_any_input_is_tokens_or_our_error(body):
    try:
        inputs = read_inputs(body, context=64, vocabulary=320, text=TEXT)
    except ApiError:
        return
    assert all(0 <= token < 320 for tokens in inputs for token in tokens)


@pytest.mark.parametrize(
    "request_",
    [
        Completion(prompt=(5, 6), max_tokens=4, candidates=5, forced=7),
        Completion(prompt=(5, 6), max_tokens=4, ignore_eos=True, slot=0, cache_prompt=True),
        Completion(prompt="x", max_tokens=4),
    ],
)
def test_our_own_completions_are_taken(request_):
    read = read_completion(request_.body(stream=True), context=64, vocabulary=320, text=TEXT)
    assert (read.limit, read.sampling) == (4, GREEDY)


def test_our_own_chats_are_taken():
    body = Chat(messages=[("system", "s"), ("user", "u")], max_tokens=4, stop=("a", "")).body(stream=True)
    read = read_chat(body, context=64, text=TEXT, thinking=True, vision=NO_VISION).generate
    assert (read.limit, read.sampling, read.stop, read.prompt) == (4, GREEDY, ("a",), "s\n\nu")
