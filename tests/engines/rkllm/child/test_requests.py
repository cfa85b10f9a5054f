"""Request bodies for the RKLLM server: whatever comes is a request or an error of ours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.rkllm.child.answering import GenerationJob
from trilithon.engines.rkllm.child.requests import read_chat, read_completion, read_inputs
from trilithon.engines.rkllm.child.structs import GREEDY
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.messages import Chat, Completion

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
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.just(10**400)
    | st.just("9" * 5000)
    | st.floats()
    | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "image_url", "url", "function", "name", "tool_calls", "arguments"]
            ),
            inner,
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
        except WireError as error:
            assert 400 <= error.status < 600
            continue
        assert isinstance(request, GenerationJob)
        assert 1 <= request.limit <= 64


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"temperature": 10**400}, '"temperature" must be from 0 to 10'),
        ({"logit_bias": [[5, 10**400]]}, "numbers up to 1e+09"),
        ({"logit_bias": [[5, float("nan")]]}, "numbers up to 1e+09"),
        ({"logit_bias": {"9" * 5000: 1}}, "no token of this model"),
    ],
)
def test_numbers_beyond_all_bounds_are_refused(body, words):
    with pytest.raises(WireError, match=re.escape(words)):
        read_completion({"prompt": [5], "temperature": 0} | body, context=64, vocabulary=320, text=TEXT)


@pytest.mark.parametrize("calls", [5, "x", [5], ["x"], {"a": 1}, [{"function": "ab"}], [{"name": "f"}]])
def test_earlier_calls_that_are_none_are_refused(calls):
    messages = [{"role": "assistant", "content": "x", "tool_calls": calls}]
    with pytest.raises(WireError, match="'tool_calls' must be an array"):
        read_chat({"messages": messages}, context=64, text=TEXT, thinking=True, vision=NO_VISION)


@given(BODIES)
def test_any_input_is_tokens_or_our_error(body):
    try:
        inputs = read_inputs(body, context=64, vocabulary=320, text=TEXT)
    except WireError:
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
