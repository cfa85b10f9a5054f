"""Request bodies for the RKLLM server: whatever comes is a request or an error of ours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.rkllm.child.answering import RkllmRequest
from trilithon.engines.rkllm.child.requests import RkllmReader
from trilithon.engines.rkllm.child.structs import GREEDY
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.messages import Chat, Completion
from trilithon.errors import UserError

TEXT = ModelText(None, None, "there are no files")
READER = RkllmReader(TEXT, 64, thinking=True, vision=(None, "no encoder"))

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
        lambda: READER.completion({"prompt": [5, 6]} | body),
        lambda: READER.chat({"messages": [{"role": "user", "content": "x"}]} | body),
    ):
        try:
            request = read()
        except WireError as error:
            assert 400 <= error.status < 600
            continue
        except UserError:  # answered with the status 400
            continue
        assert isinstance(request, RkllmRequest)
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
        READER.completion({"prompt": [5], "temperature": 0} | body)


@pytest.mark.parametrize("calls", [5, "x", [5], ["x"], {"a": 1}, [{"function": "ab"}], [{"name": "f"}]])
def test_earlier_calls_that_are_none_are_refused(calls):
    messages = [{"role": "assistant", "content": "x", "tool_calls": calls}]
    with pytest.raises(WireError, match="'tool_calls' must be an array"):
        READER.chat({"messages": messages})


@given(BODIES)
def test_any_input_is_tokens_or_our_error(body):
    try:
        inputs = READER.inputs(body)
    except (WireError, UserError):
        return
    assert all(type(token) is int and token >= 0 for tokens in inputs for token in tokens)


@pytest.mark.parametrize(
    "request_",
    [
        Completion(prompt=(5, 6), max_tokens=4, candidates=5, forced=7),
        Completion(prompt=(5, 6), max_tokens=4, ignore_eos=True, slot=0, cache_prompt=True),
        Completion(prompt="x", max_tokens=4),
    ],
)
def test_our_own_completions_are_taken(request_):
    read = READER.completion(request_.body(stream=True))
    assert (read.limit, read.sampling) == (4, GREEDY)


def test_our_own_chats_are_taken():
    body = Chat(messages=[("system", "s"), ("user", "u")], max_tokens=4, stop=("a", "")).body(stream=True)
    read = READER.chat(body)
    assert (read.limit, read.sampling, read.stop, read.prompt) == (4, GREEDY, ("a",), "s\n\nu")
