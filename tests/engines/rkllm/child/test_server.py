"""The RKLLM server over its real socket, as a real process, on the stand-in runtime."""

import asyncio
import base64
import json
import math
import threading
import time
from io import BytesIO

import pytest
from PIL import Image

from trilithon.engines.wire.messages import Chat, Completion, Token
from trilithon.errors import EngineError, EngineTimeout
from trilithon.runtime.client import Client, Disconnected

VERSIONS = ("1.1.4", "1.2.0", "1.2.3", "1.3.0")
FIRST_BYTE = 3


def ids(text):
    """As the stand-in's model has it: a token per byte."""
    return tuple(byte + FIRST_BYTE for byte in text.encode())


EXES = ids("[[" + "x" * 100 + "]]")


async def _streamed(server, request):
    return [event async for event in Client(server.socket).stream(request)]


def shown(events):
    return "".join(event.text for event in events if isinstance(event, Token))


# -- answers


@pytest.mark.parametrize("version", VERSIONS)
def test_a_chat_streams_through_our_own_client(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    *tokens, finished = asyncio.run(_streamed(server, Chat(messages=[("user", "say [[héllo wörld]]")], max_tokens=50)))
    assert shown(tokens) == "héllo wörld"
    assert (finished.reason, finished.timings.predicted_n) == ("stop", 13)
    assert [run["type"] for run in server.record("run")] == [1]


@pytest.mark.parametrize("version", ["1.1.4", "1.3.0"])
def test_without_a_tokenizer_the_runtime_gets_the_text(rkllm, version):
    server = rkllm(version)
    assert server.chat("say [[ok]]").json()["choices"][0]["message"]["content"] == "ok"
    assert server.complete("say [[ok]]", n_predict=9).json()["content"] == "ok"
    assert [run["type"] for run in server.record("run")] == [0, 0]


@pytest.mark.parametrize("waiting", ["null", "bytes"])
@pytest.mark.parametrize("version", ["1.1.4", "1.3.0"])
def test_characters_that_are_spread_over_tokens_come_whole(rkllm, version, waiting):
    server = rkllm(version, **({"waiting": waiting} if waiting == "bytes" else {}))
    prompt = list(ids("[[日本 🪨 é]]"))
    contents = [event["content"] for event in server.events("/completion", prompt=prompt, n_predict=90)]
    assert "".join(contents) == "日本 🪨 é"
    assert all("�" not in content for content in contents)


def test_an_answer_cut_within_a_character_says_so(rkllm):
    assert rkllm(waiting="bytes").complete(ids("[[日本]]"), n_predict=4).json()["content"] == "日�"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_limit_holds_to_the_token(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    body = server.complete(EXES, n_predict=7).json()
    assert (body["content"], body["tokens_predicted"], body["stop_type"]) == ("x" * 7, 7, "limit")
    body = server.complete(EXES, n_predict=0).json()
    assert (body["tokens_predicted"], body["stop_type"]) == (1, "limit")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stop_string_over_several_tokens_ends_the_answer(rkllm, byte_tokenizer, version):
    server, prompt = rkllm(version, files=byte_tokenizer), ids("[[one two three four]]")
    body = server.complete(prompt, n_predict=90, stop=["three", "nothing"]).json()
    assert (body["content"], body["stop_type"], body["stopping_word"]) == ("one two ", "word", "three")
    assert body["tokens_predicted"] <= len("one two three") + 1
    assert (
        server.complete(prompt, n_predict=3).json()["content"] == "one"
    )  # the next is not cut short by the last one's stop


@pytest.mark.parametrize("version", VERSIONS)
def test_past_the_end_it_goes_on_where_that_is_asked_for(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    body = server.complete(ids("[[ab]]"), n_predict=40, ignore_eos=True).json()
    assert (body["tokens_predicted"], body["stop_type"]) == (40, "limit")
    assert body["timings"]["predicted_n"] == 40


def test_a_model_that_the_runtime_cannot_end_is_ended_by_its_own_end_token(fresh_rkllm, tmp_path):
    # rknn-llm#534; the stand-in goes on with dots, and here the dot is the model's end.
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, ord(".") + FIRST_BYTE]}))
    server = fresh_rkllm(endless=1, answer="Done", files=tmp_path)
    assert server.complete(n_predict=60).json()["content"] == "Done"


@pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
def test_a_model_that_never_ends_is_bounded_by_the_context(rkllm, version):
    server = rkllm(version, endless=1, answer="x", options={"context": 64})
    body = server.complete(ids("abcd")).json()
    assert (body["tokens_predicted"], body["stop_type"], body["truncated"]) == (60, "limit", True)


def test_thinking_is_told_apart(rkllm, byte_tokenizer):
    server, prompt = rkllm(files=byte_tokenizer), "[[<think>Let me see.</think>It is two.]]"
    message = server.chat(prompt).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me see.", "It is two.")
    assert server.complete(prompt, n_predict=99).json()["content"] == "<think>Let me see.</think>It is two."
    *tokens, _ = asyncio.run(_streamed(server, Chat(messages=[("user", prompt)], max_tokens=50)))
    assert "".join(token.text for token in tokens if token.reasoning) == "Let me see."


@pytest.mark.parametrize("wanted", [True, False])
def test_thinking_can_be_asked_for(rkllm, byte_tokenizer, wanted):
    server = rkllm()
    assert server.chat(chat_template_kwargs={"enable_thinking": wanted}).status_code == 200
    assert server.record("run")[0]["thinking"] == wanted
    prompts = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"enable_thinking": wanted}}
    rendered = rkllm(files=byte_tokenizer).http.post("/apply-template", json=prompts).json()["prompt"]
    assert rendered == "<bos><user>x<assistant>" + ("" if wanted else "<think></think>")


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_a_call_of_a_tool_has_json_arguments(rkllm, byte_tokenizer):
    prompt = '[[<tool_call>{"name": "weather", "arguments": {"city": "Köln", "soon": true}}</tool_call>]]'
    server = rkllm(files=byte_tokenizer)
    choice = server.chat(prompt, tools=[WEATHER]).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Köln", "soon": True})
    events = server.events("/v1/chat/completions", messages=[{"role": "user", "content": prompt}], tools=[WEATHER])
    assert [c["index"] for event in events for c in event["choices"][0]["delta"].get("tool_calls", [])] == [0]


def test_tools_without_the_models_own_template_are_refused(rkllm):
    answer = rkllm().chat(tools=[WEATHER])
    assert answer.status_code == 400
    assert "tools need the model's template" in answer.json()["error"]["message"]


def _pixel():
    content = BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


PIXEL = _pixel()


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_pictures_go_through_the_encoder_into_the_prompt(fresh_rkllm, tmp_path, version):
    package = tmp_path / "packages" / "rknnlite"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "api.py").write_text(ENCODER)
    files = tmp_path / "files"
    files.mkdir()
    (files / "vision.json").write_text(
        json.dumps({"width": 28, "height": 28, "start": "<a>", "end": "<b>", "content": "<c>"})
    )
    (files / "model.rknn").write_text("x")
    options = {"encoder": str(files / "model.rknn")}
    server = fresh_rkllm(version, files=files, options=options, packages=package.parent)
    assert server.http.get("/props").json()["modalities"]["vision"] is True
    content = [{"type": "image_url", "image_url": {"url": PIXEL}}, {"type": "text", "text": "say [[a pixel]]"}]
    assert server.chat(content).json()["choices"][0]["message"]["content"] == "a pixel"
    assert [run["type"] for run in server.record("run")] == [3]
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    assert (server.chat(broken).status_code, "cannot be read" in server.chat(broken).text) == (400, True)


# known(source): rknn-toolkit-lite2 2.3.2 rknnlite/api/rknn_lite.py: names and returns of the calls
# In place of rknn-toolkit-lite2: four tokens of the stand-in's size for each picture.
ENCODER = """
import numpy

class RKNNLite:
    def load_rknn(self, path):
        return 0

    def init_runtime(self, **more):
        return 0

    def inference(self, inputs):
        assert inputs[0].shape == (1, 28, 28, 3)
        return [numpy.ones((4, 16), dtype=numpy.float32)]

    def release(self):
        pass
"""


def test_pictures_are_refused_with_the_reason(rkllm):
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = rkllm().chat(content)
    assert answer.status_code == 501
    assert "need a vision encoder" in answer.json()["error"]["message"]


# -- cancelling and queueing


def _record_until(server, call, count=1):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(found := server.record(call)) >= count:
            return found
        time.sleep(0.005)
    raise AssertionError(f"no {call} in {server.record()}")


def _busy(server):
    deadline = time.monotonic() + 60
    while not server.http.get("/slots").json()[0]["is_processing"]:
        assert time.monotonic() < deadline


def _waits(server, count):
    """Until so many wait for their turn."""
    deadline = time.monotonic() + 60
    while f"llamacpp:requests_deferred {count}\n" not in server.http.get("/metrics").text:
        assert time.monotonic() < deadline


def _idle(server):
    deadline = time.monotonic() + 60
    while server.http.get("/slots").json()[0]["is_processing"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "more"), [*((version, {}) for version in VERSIONS), ("1.3.0", {"abort_finish": 0})]
)
def test_closing_the_connection_ends_the_run(rkllm, version, more):
    server, prompt = rkllm(version, prefill_us=1000, decode_us=50_000, **more), ids("[[" + "x" * 400 + "]]")

    async def first_tokens():
        stream = Client(server.socket).stream(Completion(prompt=prompt, max_tokens=900))
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(first_tokens())
    started = time.monotonic()
    _record_until(server, "abort")
    _idle(server)
    assert time.monotonic() - started < 10  # the whole would take 20 s
    saved = server.http.post("/slots/0?action=save", json={"filename": "one.bin"})
    assert "send one first" in saved.text  # how far it came is not known
    assert server.complete(EXES, n_predict=2).json()["content"] == "xx"


@pytest.mark.slow
def test_closing_the_connection_ends_a_long_prefill(rkllm):
    server = rkllm(prefill_us=100_000)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(_streamed(server, Completion(prompt=ids("x" * 500), max_tokens=1)), 0.3))
    _idle(server)
    assert time.monotonic() - started < 25  # the prompt alone would take 50 s


@pytest.mark.slow
def test_requests_wait_for_their_turn_in_order(rkllm):
    server = rkllm(decode_us=20_000, prefill_us=1000)
    wanted, answers = ["x" * 200, "one", "two", "three"], []  # the first is at work for 4 s, and the others come

    def ask(number):
        client = Client(server.socket)
        events = asyncio.run(_all(client, Completion(prompt=ids(f"[[{wanted[number]}]]"), max_tokens=300)))
        answers.append((number, shown(events)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for waiting, thread in enumerate(threads):
        thread.start()
        if waiting:
            _waits(server, waiting)
        else:
            _busy(server)
    for thread in threads:
        thread.join()
    assert answers == list(enumerate(wanted))


async def _all(client, request):
    return [event async for event in client.stream(request)]


# -- sampling


def test_greedy_is_the_most_probable_token_and_a_run_brings_its_own_parameters(rkllm):
    server = rkllm()
    server.complete(n_predict=3)
    server.complete(n_predict=4, temperature=0.5, top_k=7, repeat_penalty=1.2)
    greedy, warm = server.record("run")
    assert (greedy["top_k"], greedy["limit"], greedy["repeat_penalty"]) == (1, 3, 1)
    assert (warm["top_k"], warm["limit"], warm["temperature"]) == (7, 4, 0.5)
    assert len(server.record("init", whole=True)) == 1


@pytest.mark.parametrize("version", ["1.1.4", "1.2.0", "1.2.3"])
def test_older_runtimes_are_loaded_again_for_other_parameters(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    server.complete(n_predict=1)
    server.mark()
    for temperature in (0, 0.5, 0.5):
        assert server.complete(n_predict=3, temperature=temperature, top_k=9).status_code == 200
    assert [load["top_k"] for load in server.record("init")] == [9]
    assert len(server.record("destroy")) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 7),
        ("grammar", "root ::= x"),
        ("json_schema", {"type": "object"}),
        ("response_format", {"type": "json_object"}),
        ("min_p", 0.1),
        ("n", 2),
        ("typical_p", 0.5),
        ("xtc_probability", 0.5),
        ("dry_multiplier", 0.8),
        ("samplers", ["top_k"]),
        ("lora", [{"id": 0}]),
        ("n_probs", 3),
        ("logit_bias", [[5, 2]]),
        ("repeat_last_n", 128),
        ("frequency_penalty", 9),
        ("tool_choice", "required"),
    ],
)
def test_what_the_runtime_lacks_is_refused_by_name(shared, name, value):
    answer = shared.complete(n_predict=1, temperature=0.7, **{name: value})
    assert answer.status_code == 400
    assert f'"{name}"' in answer.json()["error"]["message"]


def test_neutral_values_that_clients_always_send_are_taken(shared):
    neutral = {"min_p": 0, "n": 1, "grammar": "", "logit_bias": [], "seed": -1, "typical_p": 1.0, "id_slot": 0}
    assert shared.complete(n_predict=1, temperature=0.7, response_format={"type": "text"}, **neutral).status_code == 200
    assert shared.complete(n_predict=1, seed=42).status_code == 200  # greedy: any seed gives the same


@pytest.fixture
def shared(rkllm):
    return rkllm()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "'prompt' not found"),
        ({"prompt": ""}, "must not be empty"),
        ({"prompt": [-1]}, "invalid tokens"),
        ({"prompt": [5], "stop": 3}, '"stop" must be'),
        ({"prompt": [5], "n_predict": "many"}, '"n_predict" must be'),
        ({"prompt": [5], "temperature": "hot"}, '"temperature" must be'),
        ({"prompt": [5] * 2000}, "exceeds the available context size (1024 tokens)"),
    ],
)
def test_what_makes_no_sense_is_refused(shared, body, words):
    answer = shared.http.post("/completion", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/completion", b'{"prompt": "\\ud800"}', "is not JSON"),
        ("/completion", b"[" * 100_000, "is not JSON"),
        ("/completion", b'{"n_predict": 1' + b"0" * 5000 + b"}", "is not JSON"),
        ("/v1/chat/completions", b"[]", "must be a JSON object"),
    ],
)
def test_what_is_no_request_is_refused(shared, path, body, words):
    answer = shared.http.post(path, content=body)
    assert words in answer.json()["error"]["message"]


# -- scores


@pytest.mark.parametrize("version", ["1.2.0", "1.2.3", "1.3.0"])
def test_next_token_distributions_as_the_quality_check_asks_for_them(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    client, prompt = Client(server.socket), ids("say [[yes]]")

    async def ask(count, forced=None):
        request = Completion(prompt=prompt[:count], max_tokens=1, cache_prompt=True, candidates=5, forced=forced)
        return await client.distribution(request)

    candidates, timings = asyncio.run(ask(len(prompt)))
    assert candidates[0].token == ord("y") + FIRST_BYTE
    assert [c.logprob for c in candidates] == sorted((c.logprob for c in candidates), reverse=True)
    assert math.exp(candidates[0].logprob) > 0.5
    forced, timings = asyncio.run(ask(len(prompt), forced=ord("a") + FIRST_BYTE))
    assert forced == candidates  # the distribution stays the model's own
    if version != "1.2.0":  # it has no figures
        assert (timings.cache_n, timings.prompt_n) == (len(prompt) - 1, 1)


def test_log_probabilities_of_a_whole_answer(rkllm, byte_tokenizer):
    server = rkllm(files=byte_tokenizer)
    choice = server.chat("say [[héy]]", logprobs=True, top_logprobs=2).json()["choices"][0]
    assert choice["message"]["content"] == "héy"
    entries = choice["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * 5  # four bytes and the end
    assert all(entry["id"] == entry["top_logprobs"][0]["id"] for entry in entries)


def test_a_bias_moves_the_choice(rkllm, byte_tokenizer):
    server = rkllm(files=byte_tokenizer)
    body = server.complete(ids("[[yes]]"), n_predict=1, logit_bias=[[ord("n") + FIRST_BYTE, 100]]).json()
    assert body["content"] == "n"


def test_scores_are_refused_where_the_runtime_has_none(rkllm):
    answer = rkllm("1.1.4").complete(n_predict=1, n_probs=3)
    assert (answer.status_code, "no scores before 1.2.0" in answer.text) == (400, True)


@pytest.mark.parametrize("version", VERSIONS)
def test_embeddings_are_unit_vectors_of_the_last_layer(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    data = server.http.post("/v1/embeddings", json={"input": ["one", "two", "one"]}).json()
    one, two, again = (entry["embedding"] for entry in data["data"])
    assert (one, len(one)) == (again, 16)
    assert one != two
    assert math.isclose(math.hypot(*one), 1.0, rel_tol=1e-6)
    assert data["usage"]["prompt_tokens"] == 9


# -- figures


@pytest.mark.parametrize("version", VERSIONS)
def test_timings_have_the_right_units(rkllm, version):
    server = rkllm(version, prefill_us=1000, decode_us=5000)
    prompt = ids("p" * 26 + "[[" + "x" * 30 + "]]")
    timings = server.complete(prompt, n_predict=21, cache_prompt=False).json()["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, 60, 21)
    assert 60 <= timings["prompt_ms"] < 6000  # of a busy machine, and neither seconds nor microseconds
    assert 100 <= timings["predicted_ms"] < 10_000
    assert timings["predicted_per_second"] == pytest.approx(20 / timings["predicted_ms"] * 1000)


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_prefix_is_taken_up_again_and_told(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    base = ids("p" * 26 + "[[0123456789]]")
    server.complete(base, n_predict=0)
    timings = server.complete(base + ids("q" * 10), n_predict=5).json()["timings"]
    assert (timings["cache_n"], timings["prompt_n"]) == (40, 10)
    timings = server.complete(base, n_predict=5, cache_prompt=False).json()["timings"]
    assert (timings["cache_n"], timings["prompt_n"]) == (0, 40)


def test_what_it_is_and_what_it_does(fresh_rkllm, byte_tokenizer):
    server = fresh_rkllm(files=byte_tokenizer)
    server.complete(n_predict=5)
    props = server.http.get("/props").json()
    assert (props["default_generation_settings"]["n_ctx"], props["total_slots"]) == (1024, 1)
    assert (props["model_ftype"], props["rkllm"]["platform"], props["rkllm"]["abi"]) == ("W8A8", "RK3588", "1.3.0")
    assert server.http.get("/v1/models").json()["data"][0]["meta"]["n_vocab"] == 320
    slot = server.http.get("/slots").json()[0]
    assert (slot["is_processing"], slot["next_token"][0]["n_decoded"]) == (False, 5)
    assert "llamacpp:tokens_predicted_total 5\n" in server.http.get("/metrics").text
    assert server.http.get("/nothing").status_code == 404


@pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
def test_without_a_tokenizer_the_scores_tell_how_many_tokens_there_are(rkllm, version):
    assert asyncio.run(Client(rkllm(version).socket).vocabulary_size()) == 320


def test_where_nothing_tells_how_many_tokens_there_are_the_fix_is_told(rkllm):
    answer = rkllm("1.1.4").http.get("/v1/models")
    assert (answer.status_code, "put the model's tokenizer.json" in answer.text) == (501, True)


def test_tokens_and_text(rkllm, byte_tokenizer):
    server = rkllm(files=byte_tokenizer)
    tokens = asyncio.run(Client(server.socket).tokenize("höhe"))
    assert tuple(tokens) == ids("höhe")
    assert server.http.post("/detokenize", json={"tokens": tokens}).json() == {"content": "höhe"}
    pieces = server.http.post("/tokenize", json={"content": "ab", "with_pieces": True}).json()["tokens"]
    assert [piece["piece"] for piece in pieces] == ["a", "b"]


def test_without_a_tokenizer_the_fix_is_told(rkllm):
    answer = rkllm().http.post("/tokenize", json={"content": "x"})
    assert answer.status_code == 501
    assert "tokenizer.json" in answer.json()["error"]["message"]


# -- saved caches and adapters


@pytest.mark.parametrize("version", VERSIONS)
def test_a_prompt_cache_is_saved_and_restored(rkllm, byte_tokenizer, version):
    server = rkllm(version, files=byte_tokenizer)
    prompt = ids("a long beginning")
    server.complete(prompt, n_predict=0)
    saved = server.http.post("/slots/0?action=save", json={"filename": "one.bin"}).json()
    assert saved["n_saved"] == len(prompt)
    assert saved["n_written"] == (server.slots / "one.bin").stat().st_size
    assert server.http.post("/slots/0?action=erase").json()["n_erased"] == len(prompt)
    restored = server.http.post("/slots/0?action=restore", json={"filename": "one.bin"}).json()
    assert (restored["n_restored"], restored["n_read"]) == (len(prompt), saved["n_written"])
    if version in ("1.2.3", "1.3.0"):
        assert server.complete(prompt + ids("!"), n_predict=1).json()["timings"]["prompt_n"] == 1
    assert [line["call"] for line in server.record() if line["call"].endswith("cache")] == [
        "save_cache",
        "release_cache",
        "load_cache",
    ]


@pytest.mark.parametrize(
    ("action", "name", "status", "words"),
    [
        ("restore", "odd.bin", 400, "odd.bin.tokens is not a list of tokens"),
        ("save", "one.bin", 400, "send one first"),
        ("restore", "none.bin", 400, "No such file"),
        ("restore", "bad.bin", 400, "no prompt cache of this model"),
        ("save", "../one.bin", 400, "Invalid filename"),
        ("melt", "one.bin", 400, "Invalid action"),
    ],
)
def test_slots_that_cannot_be(rkllm, action, name, status, words):
    server = rkllm()
    (server.slots / "bad.bin").write_text("not a cache")
    (server.slots / "bad.bin.tokens").write_text("[5, 6]")
    (server.slots / "odd.bin").write_text("not a cache")
    (server.slots / "odd.bin.tokens").write_text("[[5], 6]")
    server.http.post("/slots/0?action=erase")
    answer = server.http.post(f"/slots/0?action={action}", json={"filename": name})
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize("version", ["1.1.4", "1.2.0", "1.3.0"])
def test_an_adapter_and_the_settings_of_the_load(fresh_rkllm, tmp_path, version):
    adapter = tmp_path / "a_lora.rkllm"
    adapter.write_text("x")
    options = {"lora": str(adapter), "lora_scale": 0.5, "domain": 3, "cpu_mask": 0x70, "embed_flash": False}
    server = fresh_rkllm(version, options=options | {"keep_tokens": 16, "context": 1000})
    assert server.complete(n_predict=1).status_code == 200
    load = server.record("init")[0]
    assert (load["domain"], load["context"], server.record("load_lora")[0]["scale"]) == (3, 992, 0.5)
    assert server.record("run")[0]["lora"] == 1
    if version != "1.1.4":
        assert (load["mask"], load["cpus"], load["embed_flash"], load["n_keep"]) == (0x70, 3, 0, 16)


# -- when it goes wrong


def test_a_crash_is_the_end_of_one_child(fresh_rkllm, rkllm):
    server, other = fresh_rkllm(), rkllm()
    with pytest.raises(Disconnected):
        asyncio.run(_streamed(server, Completion(prompt=ids("#crash") + EXES, max_tokens=20)))
    assert server.end()[0] == -11
    assert other.complete(EXES, n_predict=3).json()["content"] == "xxx"


def test_a_hang_is_told_by_the_client_and_health_goes_on(fresh_rkllm):
    server = fresh_rkllm()

    async def hang():
        client = Client(server.socket, hang_seconds=0.5)
        return [event async for event in client.stream(Completion(prompt=ids("#hang") + EXES, max_tokens=20))]

    with pytest.raises(EngineTimeout):
        asyncio.run(hang())
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_an_error_in_the_middle_is_told(rkllm, byte_tokenizer, version):
    server, prompt = rkllm(version, files=byte_tokenizer), ids("#error") + EXES
    with pytest.raises(EngineError, match="gave no reason"):
        asyncio.run(_streamed(server, Completion(prompt=prompt, max_tokens=20)))
    assert server.complete(prompt, n_predict=9).status_code == 500
    assert server.complete(EXES, n_predict=2).json()["content"] == "xx"


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("prompt", 400, "prompt longer than the context; shorten the prompt"),
        ("context", 400, "prompt longer than the context; shorten the prompt"),
        ("keep", 400, "choose a smaller keep_tokens"),
        ("image", 400, "put the <image> tag into the prompt"),
        ("memory", 503, "close what else holds the NPU"),
        ("files", 503, "ulimit -n 102400"),
        ("silent", 500, "gave no reason"),
    ],
)
def test_each_message_of_a_run_becomes_an_error_with_its_fix(rkllm, fault, status, words):
    answer = rkllm().complete(ids(f"#fail-{fault}"), n_predict=1)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
