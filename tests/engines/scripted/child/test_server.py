"""The scripted child over its real socket, as a real process. The key sets are those that llama-server b11434 gave
to the same requests, captured from the program itself."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.scripted.child.model import VOCABULARY
from trilithon.engines.scripted.child.slot import ScriptedSlot
from trilithon.engines.scripted.engine import Script, ScriptedEngine
from trilithon.engines.wire.bodies import Totals
from trilithon.engines.wire.generation import GenerationEnd, GenerationRequest
from trilithon.models.files.model_file import ModelFile

FAST = {"prefill": "100000", "decode": "2000", "noise": "0", "seed": "1"}
CHUNK = {"index", "content", "tokens", "stop", "id_slot", "tokens_predicted", "tokens_evaluated"}
FINAL = CHUNK | {
    *("model", "generation_settings", "prompt", "has_new_line", "truncated"),
    *("stop_type", "stopping_word", "tokens_cached", "timings"),
}
TIMINGS = {
    *("cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second"),
    *("predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"),
}
CANDIDATE = {"id", "token", "bytes", "logprob"}
CHAT_CHUNK = {"choices", "created", "id", "model", "system_fingerprint", "object"}
USAGE = {"completion_tokens", "prompt_tokens", "total_tokens", "prompt_tokens_details"}
PROPS = {
    *("default_generation_settings", "total_slots", "model_alias", "model_ftype", "model_path", "modalities"),
    *("media_marker", "endpoint_slots", "endpoint_props", "endpoint_metrics", "ui", "ui_settings", "chat_template"),
    *("chat_template_caps", "bos_token", "eos_token", "build_info", "is_sleeping", "cors_proxy_enabled"),
}
META = {"vocab_type", "n_vocab", "n_ctx", "n_ctx_train", "n_embd", "n_params", "size", "ftype"}
METRICS = {
    *("prompt_tokens_total", "prompt_tokens_cached_total", "prompt_seconds_total", "tokens_predicted_total"),
    *("tokens_predicted_seconds_total", "n_tokens_max", "prompt_tokens_seconds", "predicted_tokens_seconds"),
    *("requests_processing", "requests_deferred"),
}


class Child:
    def __init__(self, folder, options, context=512, slots=1):
        file = ModelFile(
            path=folder / "any.gguf",
            format="gguf",
            name="any",
            architecture="none",
            quantization="none",
            size_bytes=0,
            sha256="",
        )
        engine = ScriptedEngine()
        settings = Settings(options=tuple((FAST | options).items()), context=context, batch=100, slots=slots)
        assert engine.refusal(file, engine.builds()[0], "cpu", settings) == ""
        placement = Placement(name="x", file=file, build=engine.builds()[0], unit="cpu", settings=settings)
        launch = engine.launch(placement, folder)
        self.folder, self.socket = folder, launch.socket
        self.process = subprocess.Popen(launch.argv, stderr=subprocess.PIPE, text=True)
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(launch.socket)), base_url="http://child", timeout=60
        )

    def answering(self):
        """Waits for any answer of /health and gives its status."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            # httpx leaves a socket open that could not connect, so the first word is tried without it.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return self.http.get("/health").status_code
            time.sleep(0.01)
        raise AssertionError(f"no answer; the child ended with {self.process.poll()}: {self.process.stderr.read()}")

    def complete(self, prompt="Hello", **body):
        return self.http.post("/completion", json={"prompt": prompt, "n_predict": 5, **body})

    def events(self, path="/completion", **body):
        """The events that arrive, and whether the stream came to its proper end."""
        events, self.arrivals_ns = [], []
        try:
            with self.http.stream("POST", path, json={"stream": True, **body}) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        self.arrivals_ns.append(time.monotonic_ns())
                        events.append(json.loads(line.removeprefix("data: ")))
                    else:
                        assert line in ("", "data: [DONE]")
        except httpx.RemoteProtocolError:
            return events, False
        return events, True

    def end(self):
        """The code it ended with, and what it said."""
        code = self.process.wait(timeout=60)
        return code, self.process.stderr.read()


@contextlib.contextmanager
def running(folder, *, slots=1, **options):
    child = Child(folder, options, slots=slots)
    try:
        yield child
    finally:
        child.http.close()
        child.process.kill()
        child.process.wait()
        child.process.stderr.close()


@pytest.fixture
def start(tmp_path):
    with contextlib.ExitStack() as stack:

        def begin(*, ready=True, name="child", **options):
            folder = tmp_path / name
            folder.mkdir()
            child = stack.enter_context(running(folder, **options))
            if ready:
                assert child.answering() == 200
            return child

        yield begin


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    with running(tmp_path_factory.mktemp("h"), thinking="Let me see.", text="Two stones and a third.") as child:
        assert child.answering() == 200
        yield child


@pytest.fixture(scope="module")
def slow_and_half_wrong(tmp_path_factory):
    with running(tmp_path_factory.mktemp("s"), prefill="1000", decode="200", wrong="0.5") as child:
        assert child.answering() == 200
        yield child


def text_of(events):
    return "".join(event["content"] for event in events)


def test_describes_itself_as_llama_server_does(healthy):
    assert healthy.http.get("/health").json() == {"status": "ok"}
    props = healthy.http.get("/props").json()
    assert set(props) == PROPS
    assert props["default_generation_settings"]["n_ctx"] == 512
    models = healthy.http.get("/v1/models").json()
    assert set(models) == {"models", "object", "data"}
    assert set(models["data"][0]["meta"]) == META
    assert models["data"][0]["meta"]["n_vocab"] == len(VOCABULARY)
    (slot,) = healthy.http.get("/slots").json()
    assert {"id", "n_ctx", "speculative", "is_processing"} <= set(slot)
    lines = healthy.http.get("/metrics").text.splitlines()
    assert {line.split()[0].removeprefix("llamacpp:") for line in lines if line[0] != "#"} == METRICS


def test_completion_whole(healthy):
    body = healthy.complete("The sky", n_predict=4, n_probs=3, return_tokens=True).json()
    assert set(body) == FINAL | {"completion_probabilities"}
    assert set(body["timings"]) == TIMINGS
    assert body["timings"]["predicted_n"] == body["tokens_predicted"] == len(body["tokens"]) == 4
    assert VOCABULARY.detokenize(body["tokens"]) == body["content"]
    assert body["stop_type"] == "limit"
    assert body["tokens_cached"] == body["tokens_evaluated"] + 3
    assert len(body["completion_probabilities"]) == 4
    entry = body["completion_probabilities"][0]
    assert set(entry) == CANDIDATE | {"top_logprobs"}
    assert [set(candidate) for candidate in entry["top_logprobs"]] == [CANDIDATE] * 3


def test_completion_stream_says_the_same_piece_by_piece(healthy):
    whole = healthy.complete(n_predict=-1).json()
    events, ended = healthy.events(prompt="Hello", n_predict=-1, n_probs=1)
    *pieces, final = events
    assert ended
    assert set(final) == FINAL
    assert all(set(piece) == CHUNK | {"completion_probabilities"} for piece in pieces)
    assert pieces[-1]["content"] == ""  # the end token takes a step too, and has a probability
    assert text_of(pieces) == whole["content"] == "<think>\nLet me see.\n</think>\n\nTwo stones and a third."
    assert final["stop_type"] == whole["stop_type"] == "eos"
    assert final["timings"]["predicted_n"] == len(pieces)


def test_nothing_asked_for_still_samples_one_token(healthy):
    body = healthy.complete([5, 6, 7], n_predict=0).json()
    assert body["tokens_predicted"] == 1
    assert body["timings"]["predicted_per_second"] == 0


def test_progress_is_told_batch_by_batch(healthy):
    events, _ = healthy.events(prompt=[9] * 250, n_predict=1, return_progress=True, cache_prompt=False)
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert [entry["processed"] for entry in progress] == [0, 100, 200, 250]
    assert set(progress[0]) == {"total", "cache", "processed", "time_ms"}


def test_prompts_are_text_or_tokens_or_both(healthy):
    tokens = healthy.http.post("/tokenize", json={"content": "The sky", "add_special": True}).json()["tokens"]
    assert healthy.complete("The sky").json()["tokens_evaluated"] == len(tokens)
    assert healthy.complete(tokens).json()["prompt"] == "<bos>The sky"
    assert healthy.complete([2, "The", *tokens[-2:]]).json()["prompt"].startswith("<bos>The")


def test_the_prefix_cache_is_real(healthy):
    def counts(prompt, **body):
        timings = healthy.complete(prompt, n_predict=1, **body).json()["timings"]
        return timings["cache_n"], timings["prompt_n"]

    prompt = [20, *range(300, 400)]
    assert counts(prompt, cache_prompt=False) == (0, 101)
    assert counts(prompt) == (100, 1)
    assert counts([*prompt, 7, 8]) == (101, 2)
    assert counts([*prompt[:50], 9, 9]) == (50, 2)
    assert counts(prompt, cache_prompt=False) == (0, 101)


def test_stop_words_end_the_answer_and_are_not_shown(healthy):
    body = healthy.complete(n_predict=-1, stop=["stones", "third"]).json()
    assert body["content"].endswith("Two ")
    assert (body["stop_type"], body["stopping_word"]) == ("word", "stones")
    events, _ = healthy.events(prompt="Hello", n_predict=-1, stop="stones")
    assert text_of(events) == body["content"]


def test_text_held_back_for_a_stop_word_is_given_at_the_end(healthy):
    events, _ = healthy.events(prompt="Hello", n_predict=-1, stop=["third. And"])
    assert text_of(events).endswith("Two stones and a third.")


def test_ignoring_the_end_goes_on_to_the_limit_or_the_context(healthy):
    assert healthy.complete(n_predict=100, ignore_eos=True).json()["tokens_predicted"] == 100
    full = healthy.complete([5] * 400, n_predict=-1, ignore_eos=True).json()
    assert (full["tokens_predicted"], full["truncated"], full["stop_type"]) == (112, True, "limit")


def test_chat_whole_tells_thinking_from_the_answer(healthy):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url"}]}]
    body = healthy.http.post("/v1/chat/completions", json={"messages": messages}).json()
    assert set(body) == CHAT_CHUNK | {"usage", "timings"}
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert set(choice) == {"finish_reason", "index", "message"}
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Two stones and a third.",
        "reasoning_content": "Let me see.",
    }
    assert set(body["usage"]) == USAGE


def test_chat_stream(healthy):
    messages = [{"role": "user", "content": "Hi"}]
    options = {"stream_options": {"include_usage": True}, "return_progress": True, "logprobs": True, "top_logprobs": 2}
    events, ended = healthy.events("/v1/chat/completions", messages=messages, **options)
    assert ended
    assert all(set(event) - {"prompt_progress", "usage", "timings"} == CHAT_CHUNK for event in events)
    *chunks, usage = events
    assert usage["choices"] == []
    assert set(usage["usage"]) == USAGE
    assert set(usage["timings"]) == TIMINGS
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if "prompt_progress" not in chunk]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me see."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Two stones and a third."
    assert chunks[-1]["choices"][0] == {"finish_reason": "stop", "index": 0, "delta": {}}
    probabilities = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks if "logprobs" in str(chunk)]
    assert set(probabilities[0][0]) == CANDIDATE | {"top_logprobs"}


def test_chat_stream_without_usage_has_its_timings_in_the_last_chunk(healthy):
    messages = [{"role": "user", "content": "Hi"}]
    events, _ = healthy.events("/v1/chat/completions", messages=messages, max_tokens=3)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert set(events[-1]["timings"]) == TIMINGS
    assert "usage" not in events[-1]


def test_tokenize_and_back(healthy):
    text = "Grüße, мир: 漢 🧌"
    tokens = healthy.http.post("/tokenize", json={"content": text}).json()["tokens"]
    assert healthy.http.post("/detokenize", json={"tokens": tokens}).json() == {"content": text}
    pieces = healthy.http.post("/tokenize", json={"content": "the 🧌", "with_pieces": True}).json()["tokens"]
    assert [piece["piece"] for piece in pieces] == ["the", " ", [240], [159], [167], [140]]


def test_apply_template_is_what_chat_evaluates(healthy):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = healthy.http.post("/apply-template", json={"messages": messages}).json()["prompt"]
    chat = healthy.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}).json()
    assert chat["usage"]["prompt_tokens"] == healthy.complete(prompt).json()["tokens_evaluated"]


def test_embeddings(healthy):
    body = healthy.http.post("/v1/embeddings", json={"input": ["a", "b", "a"]}).json()
    assert set(body) == {"model", "object", "usage", "data"}
    assert [set(entry) for entry in body["data"]] == [{"embedding", "index", "object"}] * 3
    first, second, third = (entry["embedding"] for entry in body["data"])
    assert first == third != second


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/completion", {"n_predict": 1}, 400, "invalid_request_error"),
        ("/completion", {"prompt": []}, 400, "invalid_request_error"),
        ("/completion", {"prompt": [99_999_999]}, 400, "invalid_request_error"),
        ("/completion", {"prompt": [True]}, 400, "invalid_request_error"),
        ("/completion", {"prompt": ["a", "b"]}, 501, "not_supported_error"),
        ("/completion", {"prompt": [5] * 600}, 400, "exceed_context_size_error"),
        ("/completion", {"prompt": "a", "n_predict": "many"}, 400, "invalid_request_error"),
        ("/completion", {"prompt": "a", "stop": [1]}, 400, "invalid_request_error"),
        ("/completion", [1], 400, "invalid_request_error"),
        ("/v1/chat/completions", {}, 400, "invalid_request_error"),
        ("/v1/chat/completions", {"messages": "hi"}, 400, "invalid_request_error"),
        ("/v1/embeddings", {}, 400, "invalid_request_error"),
        ("/detokenize", {"tokens": [-1]}, 400, "invalid_request_error"),
        ("/slots/0?action=save", {"filename": "../a"}, 400, "invalid_request_error"),
        ("/slots/0?action=restore", {"filename": "nothing"}, 400, "invalid_request_error"),
        ("/slots/0?action=fold", {"filename": "a"}, 400, "invalid_request_error"),
        ("/slots/7?action=save", {"filename": "a"}, 400, "invalid_request_error"),
        ("/nowhere", {}, 404, "not_found_error"),
    ],
)
def test_bad_requests_get_an_error_object(healthy, path, body, status, kind):
    response = healthy.http.post(path, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (status, kind)
    assert error["message"]


def test_what_is_not_json_is_said_so(healthy):
    response = healthy.http.post("/completion", content=b"{nope")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"


def test_a_closed_connection_cancels_at_once(healthy):
    endless = {"prompt": "Hello", "n_predict": -1, "ignore_eos": True}
    with healthy.http.stream("POST", "/completion", json={**endless, "stream": True}) as response:
        next(response.iter_lines())
    before = healthy.http.get("/metrics").text
    assert healthy.complete(n_predict=1).status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        healthy.http.post("/completion", json=endless, timeout=httpx.Timeout(60, read=0.05))
    body = healthy.complete(n_predict=1, prompt="Other").json()
    assert body["tokens_predicted"] == 1
    generated = [
        float(line.split()[1])
        for text in (before, healthy.http.get("/metrics").text)
        for line in text.splitlines()
        if line.startswith("llamacpp:tokens_predicted_total")
    ]
    assert generated[1] - generated[0] < 400  # the context would have taken 500 in each


def test_rates_are_kept_and_requests_wait_their_turn(slow_and_half_wrong):
    child = slow_and_half_wrong
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        first = pool.submit(child.complete, [7] * 100, n_predict=241, ignore_eos=True, cache_prompt=False)
        while not child.http.get("/slots").json()[0]["is_processing"]:
            assert not first.done()
        second = pool.submit(child.complete, [8] * 100, n_predict=1, cache_prompt=False)
        while "llamacpp:requests_deferred 1" not in child.http.get("/metrics").text:
            assert not second.done()
        first, second = first.result().json()["timings"], second.result().json()["timings"]
        elapsed_ms = (time.monotonic() - started) * 1e3
    # Never early; late only by what the machine adds.
    assert 100 <= first["prompt_ms"] < 1000
    assert 1200 <= first["predicted_ms"] < 5000
    assert 100 <= second["prompt_ms"] < 1000  # its waiting does not count
    assert elapsed_ms >= 1400


def test_a_saved_slot_goes_on_in_another_process_that_agrees_except_where_it_is_wrong(healthy, slow_and_half_wrong):
    prompt, other = list(range(1000, 1100)), slow_and_half_wrong
    healthy.complete(prompt, n_predict=0)
    saved = healthy.http.post("/slots/0?action=save", json={"filename": "a.bin"}).json()
    assert set(saved) == {"id_slot", "filename", "n_saved", "n_written", "timings"}
    assert saved["n_saved"] == 100
    (other.folder / "slots").mkdir()
    (healthy.folder / "slots" / "a.bin").rename(other.folder / "slots" / "a.bin")
    restored = other.http.post("/slots/0?action=restore", json={"filename": "a.bin"}).json()
    assert set(restored) == {"id_slot", "filename", "n_restored", "n_read", "timings"}
    assert (restored["n_restored"], restored["n_read"]) == (100, saved["n_written"])
    timings = other.complete(prompt, n_predict=1).json()["timings"]
    assert (timings["cache_n"], timings["prompt_n"]) == (99, 1)
    assert other.http.post("/slots/0?action=erase").json() == {"id_slot": 0, "n_erased": 100}
    assert other.complete(prompt, n_predict=1).json()["timings"]["cache_n"] == 0

    probes = [[4, number] for number in range(40)]
    same = sum(distribution_after(healthy, prefix) == distribution_after(other, prefix) for prefix in probes)
    assert 8 < same < 32


def distribution_after(child, prefix):
    (entry,) = child.complete(prefix, n_predict=1, n_probs=3).json()["completion_probabilities"]
    return [(candidate["id"], candidate["logprob"]) for candidate in entry["top_logprobs"]]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"crash_after": "3"}, -signal.SIGSEGV, "after 3 tokens"),
        ({"oom_after": "3"}, -signal.SIGKILL, "more memory than there is"),
        ({"exit_after": "3", "exit_code": "9"}, 9, "ending with code 9"),
        ({"die_slowly": "3"}, -signal.SIGABRT, "giving up"),
    ],
)
def test_deaths(start, options, code, said):
    child = start(**options)
    assert child.complete(n_predict=1).status_code == 200  # tokens count over the life of the process
    began_ns = time.monotonic_ns()
    events, ended = child.events(prompt="Hello", n_predict=50)
    assert not ended
    assert len(events) == (8 if "die_slowly" in options else 2)
    assert not any(event["stop"] for event in events)
    ended_with, words = child.end()
    assert ended_with == code
    assert said in words
    if "die_slowly" in options:
        # A step takes 0.5 ms at first. Held against the beginning: only the last arrival cannot look too early.
        assert child.arrivals_ns[-1] - began_ns > 30e6


@pytest.mark.slow
def test_hang_is_alive_and_silent_until_the_client_goes(start):
    child, events = start(hang_after="2"), []
    patience = httpx.Timeout(60, read=2.0)
    with (
        pytest.raises(httpx.ReadTimeout),
        child.http.stream("POST", "/completion", json={"prompt": "a", "stream": True}, timeout=patience) as response,
    ):
        events.extend(line for line in response.iter_lines() if line)
    assert len(events) == 2
    assert child.process.poll() is None
    assert child.http.get("/health").status_code == 200
    deadline = time.monotonic() + 60
    while child.http.get("/slots").json()[0]["is_processing"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.http.get("/slots").json()[0]["is_processing"] is False
    child.process.terminate()
    assert child.end()[0] == 0


def test_load_takes_its_time_and_hang_start_never_ends(start):
    loading = start(ready=False, load="700ms", memory=str(50 << 20), name="second")
    assert loading.answering() == 503
    child = start(ready=False, hang_start="yes")
    assert child.answering() == 503
    answer = child.http.get("/props")
    assert answer.status_code == 503
    assert answer.json() == {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    deadline = time.monotonic() + 60
    while loading.answering() != 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loading.complete().status_code == 200
    status = Path(f"/proc/{loading.process.pid}/status").read_text(encoding="ascii").splitlines()
    resident_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident_kib > 50 << 10
    assert child.answering() == 503


def test_error_in_the_middle_of_a_stream(start):
    child = start(error_after="9", garbage="noise")
    events, ended = child.events(prompt="Hello", n_predict=50)
    assert ended
    *pieces, error = events
    assert pieces
    assert all(set(piece) == CHUNK for piece in pieces)
    assert not text_of(pieces).isprintable()
    assert set(error) == {"error"}
    assert set(error["error"]) == {"code", "message", "type"}
    response = child.complete()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"


def test_refused_requests(start):
    child = start(refuse_requests="no KV cache left")
    expected = {"error": {"code": 500, "message": "no KV cache left", "type": "server_error"}}
    messages = [{"role": "user", "content": "Hi"}]
    for path, body in (("/completion", {"prompt": "a"}), ("/v1/chat/completions", {"messages": messages})):
        response = child.http.post(path, json={**body, "stream": True})
        assert (response.status_code, response.json()) == (500, expected)


def test_a_refused_start_gives_its_reason_and_a_flaky_one_recovers(start, tmp_path):
    options = {"flaky": "1", "flaky_file": str(tmp_path / "starts"), "refuse_start": "the NPU is asleep"}
    first = start(ready=False, **options)
    assert first.end() == (3, "scripted: the NPU is asleep\n")
    assert start(name="second", **options).complete().status_code == 200


def test_a_script_that_does_not_fit_ends_the_child_with_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trilithon.engines.scripted.child.server",
            "--socket",
            "s",
            "--script",
            '{"decode": "fast"}',
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "decode = 'fast'" in done.stderr


def test_several_slots_work_side_by_side_and_each_keeps_its_own(start):
    child = start(slots=2, decode="20")
    first, second = list(range(300, 350)), list(range(400, 450))

    def cached(prompt, **more):
        return child.complete(prompt, **more).json()["timings"]["cache_n"]

    def at_work():
        return sum(slot["is_processing"] for slot in child.http.get("/slots").json())

    assert [slot["id"] for slot in child.http.get("/slots").json()] == [0, 1]
    assert child.http.get("/props").json()["total_slots"] == 2
    assert [cached(first, id_slot=1), cached(second, id_slot=0)] == [0, 0]
    assert [cached(second), cached(first)] == [49, 49]  # each where it was
    saved = child.http.post("/slots/1?action=save", json={"filename": "b"}).json()
    assert (saved["id_slot"], saved["n_saved"]) == (1, 54)
    body = {"prompt": first, "n_predict": 400, "ignore_eos": True, "stream": True}
    with child.http.stream("POST", "/completion", json=body) as long:
        lines = long.iter_lines()
        next(lines)
        assert at_work() == 1
        assert cached(second) == 49  # it need not wait
        assert at_work() == 1
    for path in ("/completion", "/slots/2?action=erase"):
        assert child.http.post(path, json={"prompt": first, "id_slot": 2, "stream": True}).status_code == 400


def test_without_a_seed_two_slots_differ_as_real_processes_do():
    async def prompt_times():
        slot = ScriptedSlot(Script(noise=0.3, prefill=20_000), context=1000, batch=1000, totals=Totals())
        request = GenerationRequest(prompt=[5] * 200, limit=1, cache=False)
        return [
            step.timings.prompt_ms
            for _ in range(4)
            async for step in slot.generate(request)
            if isinstance(step, GenerationEnd)
        ]

    one, two = asyncio.run(prompt_times()), asyncio.run(prompt_times())
    assert len(one) == len(two) == 4
    assert one != pytest.approx(two, rel=0.02)
