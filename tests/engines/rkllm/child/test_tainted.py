"""Errors that the runtime only prints while it returns success: the answer is an error, and nothing of it is kept."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.engines.wire.messages import TAINTED, Chat, Completion
from trilithon.errors import TaintedAnswer
from trilithon.runtime.client import Client

VERSIONS = ("1.1.4", "1.2.0", "1.2.3", "1.3.0")
MATMUL = "E rkllm: matmul(w8a8) run failed"
SUBMIT = "E RKNN: failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, task number: 1, run task"
StartServer = Callable[..., Any]


def ids(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("word", "line"), [("#matmul", MATMUL), ("#submit", SUBMIT)])
def test_a_whole_answer_is_an_error_that_names_the_line(rkllm: StartServer, version: str, word: str, line: str) -> None:
    server = rkllm(version)
    for answer in (server.chat(f"{word} [[hello]]"), server.complete(ids(f"{word} [[hello]]"), n_predict=5)):
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (500, TAINTED)
        assert error["line"].startswith(line)
        assert line in error["message"]
    good = server.chat("say [[hello]]")
    assert good.json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completion"])
def test_a_stream_has_the_text_and_ends_in_an_error(rkllm: StartServer, path: str) -> None:
    content = "#submit [[hello]]"
    body = {"prompt": ids(content)} if path == "/completion" else {"messages": [{"role": "user", "content": content}]}
    *pieces, last = rkllm().events(path, **body, n_predict=5)
    choices = [piece.get("choices", [{}])[0] for piece in pieces]
    texts = [choice.get("delta", piece).get("content") for choice, piece in zip(choices, pieces, strict=True)]
    assert "".join(filter(None, texts)) == "hello"
    assert last["error"]["type"] == TAINTED
    assert not any(piece.get("stop") for piece in pieces)
    assert not any(choice.get("finish_reason") for choice in choices)


@pytest.mark.parametrize(
    "request_",
    [Chat(messages=[("user", "#matmul [[x]]")], max_tokens=5), Completion(prompt=ids("#matmul [[x]]"), max_tokens=5)],
)
def test_the_client_has_an_error_of_its_own_kind(rkllm: StartServer, request_: Chat | Completion) -> None:
    client = Client(rkllm().socket)
    with pytest.raises(TaintedAnswer) as caught:
        asyncio.run(client.complete(request_))
    assert (caught.value.line, caught.value.kind) == (MATMUL, "tainted")


@pytest.mark.parametrize("version", VERSIONS)
def test_keys_and_values_of_a_tainted_answer_are_not_used_again(rkllm: StartServer, version: str) -> None:
    """The next answer would be wrong too, and no line would say so."""
    server = rkllm(version)
    prompt = "a long beginning that both have #submit [[one]]"
    assert server.complete(ids(prompt), n_predict=3).status_code == 500
    timings = server.complete(ids(prompt.replace("#submit", "quietly")), n_predict=3).json()["timings"]
    assert (timings["prompt_n"], timings["cache_n"]) == (len(prompt), 0)
    assert server.record("destroy" if version == "1.1.4" else "clear")


def test_a_stop_word_does_not_hide_it(rkllm: StartServer) -> None:
    answer = rkllm().complete(ids("#matmul [[one two three]]"), n_predict=30, stop=["two"])
    assert answer.json()["error"]["line"] == MATMUL


def test_probabilities_and_vectors_are_tainted_too(rkllm: StartServer, byte_tokenizer: Path) -> None:
    server = rkllm(files=byte_tokenizer)
    scored = server.complete(ids("#matmul"), n_predict=1, n_probs=5)
    vectors = server.http.post("/v1/embeddings", json={"input": "#matmul"})
    assert [answer.json()["error"]["type"] for answer in (scored, vectors)] == [TAINTED, TAINTED]


def test_a_warning_taints_nothing(rkllm: StartServer) -> None:
    answer = rkllm().chat("#warn [[hello]]")
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


def test_a_prompt_and_an_answer_that_quote_an_error_are_not_tainted(rkllm: StartServer) -> None:
    text = f"why this?\n{MATMUL}\n"
    answer = rkllm().chat(f"{text} [[\n{MATMUL}\n]]")
    assert MATMUL in answer.json()["choices"][0]["message"]["content"]


def test_only_the_request_that_ran_meanwhile_is_tainted(rkllm: StartServer) -> None:
    """Others wait their turn; what they get is computed before and after."""

    async def together() -> list[Any]:
        client = Client(rkllm().socket)
        contents = [f"{word} [[hello {number}]]" for number in range(4) for word in ("#matmul", "say")]
        requests = [client.complete(Chat(messages=[("user", content)], max_tokens=20)) for content in contents]
        return await asyncio.gather(*requests, return_exceptions=True)

    answers = asyncio.run(together())
    assert [isinstance(answer, TaintedAnswer) for answer in answers] == [True, False] * 4
