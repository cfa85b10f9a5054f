import json

import pytest

from trilithon.engines.wire.messages import Chat, Completion, Timings


def test_a_completion_as_it_goes_over_the_wire() -> None:
    body = Completion(prompt=(1, 2), max_tokens=0, cache_prompt=True, ignore_eos=True).body(stream=False)
    assert json.loads(json.dumps(body)) == body
    assert (body["prompt"], body["n_predict"], body["stream"]) == ([1, 2], 0, False)
    assert (body["cache_prompt"], body["ignore_eos"]) == (True, True)
    assert not {"stop", "n_probs"} & body.keys()


def test_a_completion_is_greedy_and_cold_unless_asked() -> None:
    body = Completion(prompt="x", max_tokens=1).body(stream=True)
    assert (body["prompt"], body["temperature"], body["repeat_penalty"], body["cache_prompt"]) == ("x", 0.0, 1.0, False)


def test_a_chat_as_it_goes_over_the_wire() -> None:
    body = Chat(messages=[("system", "s"), ("user", "u")], max_tokens=9, stop=("\n\n",)).body(stream=True)
    assert json.loads(json.dumps(body)) == body
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert (body["max_tokens"], body["stop"], body["temperature"]) == (9, ["\n\n"], 0.0)


def test_timings() -> None:
    parsed = Timings.parse({"cache_n": 1, "prompt_n": 2, "prompt_ms": 3, "predicted_n": 4, "predicted_ms": 5.5, "x": 0})
    assert parsed == Timings(1, 2, 3.0, 4, 5.5)
    assert Timings.parse({}) == Timings(0, 0, 0.0, 0, 0.0)


@pytest.mark.parametrize("body", [{"prompt_n": None}, {"prompt_ms": "soon"}])
def test_timings_that_are_none(body: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Timings.parse(body)
