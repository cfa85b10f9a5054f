import json
import os
import struct
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.files.model_file import read_model_file
from trilithon.models.files.rkllm import RkllmFacts, companion, read_rkllm
from trilithon.models.synthetic.tiny import write_tiny_model

# A file in the layout that RKLLM files are said to have.
MASK = bytes((number * 167 + 41) % 256 for number in range(256))
USUAL: Mapping[str, str | int | float | list[str]] = {
    "general.architecture": "qwen2",
    "general.name": "Qwen2.5 0.5B Instruct",
    "general.file_type": 7,
    "rkllm.platform": "RK3588",
    "rkllm.core_num": 3,
    "rkllm.version": "1.3.0",
    "rkllm.max_context": 4096,
    "rkllm.chat_template.system": "<|im_start|>system\n",
    "rkllm.chat_template.pre": "<|im_start|>user\n",
    "rkllm.chat_template.post": "<|im_end|>\n",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
}


def masked(text: bytes, mask: bytes = MASK) -> bytes:
    return bytes(byte ^ mask[at % len(mask)] for at, byte in enumerate(text))


def write_rkllm(
    path: Path, values: Mapping[str, str | int | float | list[str]] = USUAL, *, mask: bytes = MASK, weights: int = 64
) -> Path:
    pairs = b"".join(_string(key, mask) + _value(value, mask) for key, value in values.items())
    path.write_bytes(masked(b"GGUF", mask) + struct.pack("<IQQ", 3, 0, len(values)) + pairs + b"\xa5" * weights)
    return path


def _string(text: str, mask: bytes) -> bytes:
    stored = masked(text.encode(), mask)
    return struct.pack("<Q", len(stored)) + stored


def _value(value: str | int | float | list[str], mask: bytes) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _string(value, mask)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(each, mask) for each in value)


def test_a_usual_file(tmp_path: Path) -> None:
    path = write_rkllm(tmp_path / "m.rkllm")
    assert read_rkllm(path) == RkllmFacts(
        path=path,
        size_bytes=path.stat().st_size,
        readable=True,
        name="Qwen2.5 0.5B Instruct",
        architecture="qwen2",
        quantization="",
        platform="RK3588",
        cores=3,
        context_limit=4096,
        toolkit="1.3.0",
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=256, max_size=256).filter(lambda mask: any(mask[:4])))
def test_whatever_the_mask_is(tmp_path: Path, mask: bytes) -> None:
    facts = read_rkllm(write_rkllm(tmp_path / "m.rkllm", mask=mask))
    assert (facts.platform, facts.context_limit, facts.architecture) == ("RK3588", 4096, "qwen2")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(list(USUAL)), st.sets(st.sampled_from(list(USUAL)), max_size=6))
def test_any_order_and_missing_keys(tmp_path: Path, order: list[str], missing: set[str]) -> None:
    kept = {key: USUAL[key] for key in order if key not in missing}
    facts = read_rkllm(write_rkllm(tmp_path / "m.rkllm", kept))
    assert facts.platform in (kept.get("rkllm.platform"), None)
    assert facts.cores in (kept.get("rkllm.core_num"), None)
    if len(missing) < 3:
        assert facts.context_limit == kept.get("rkllm.max_context")


def test_a_long_text_needs_the_chat_template_from_beside_it(tmp_path: Path) -> None:
    template = "{% for message in messages %}" * 30
    long_name = "A name that is longer than the longest name of a key which is known"
    values = {**USUAL, "general.name": long_name, "tokenizer.chat_template": template}
    path = write_rkllm(tmp_path / "short.rkllm", values)
    assert read_rkllm(path).name == "short"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert read_rkllm(path).name == long_name
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{# another one #}" * 30}))
    assert read_rkllm(path).name == "short"
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert read_rkllm(path).platform == "RK3588"


def test_a_configuration_that_is_none_is_passed_over(tmp_path: Path) -> None:
    path = write_rkllm(tmp_path / "m.rkllm")
    beside = tmp_path / "tokenizer_config.json"
    os.mkfifo(beside)
    assert read_rkllm(path).readable
    beside.unlink()
    with beside.open("wb") as file:
        file.truncate(1 << 34)
    assert read_rkllm(path).readable


def test_too_few_known_keys_are_no_proof(tmp_path: Path) -> None:
    facts = read_rkllm(write_rkllm(tmp_path / "m.rkllm", {"rkllm.platform": "RK3588", "rkllm.core_num": 3}))
    assert (facts.readable, facts.platform, facts.cores) == (True, None, None)


def test_numbers_may_be_texts_and_texts_may_be_numbers(tmp_path: Path) -> None:
    values = {**USUAL, "rkllm.max_context": "16384", "rkllm.platform": 3588, "rkllm.core_num": "three"}
    facts = read_rkllm(write_rkllm(tmp_path / "m.rkllm", values))
    assert (facts.context_limit, facts.platform, facts.cores) == (16384, None, None)


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("Qwen2.5-1.5B-Instruct_W8A8_RK3588", "w8a8"),
        ("qwen3-w4a16_g128-rk3576", "w4a16_g128"),
        ("w8a8_g256_x", "w8a8_g256"),
        ("gemma-3", ""),
        ("draw8a80", ""),
    ],
)
def test_the_name_says_the_quantization(tmp_path: Path, name: str, quantization: str) -> None:
    assert read_rkllm(write_rkllm(tmp_path / f"{name}.rkllm")).quantization == quantization


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"RKLL" + bytes(100), "rkllm-toolkit"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF" + bytes(100), "is a GGUF"),
        (b"", "is empty"),
    ],
)
def test_what_is_surely_something_else(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        read_rkllm(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300))
def test_garbage_is_a_file_without_facts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(b"\xda\xee\xb3\x36" + content)
    facts = read_rkllm(path)
    assert (facts.name, facts.platform, facts.context_limit) == ("m", None, None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cut_and_damaged_files_raise_nothing(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(write_rkllm(tmp_path / "whole.rkllm").read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.rkllm"
    path.write_bytes(content[: data.draw(st.integers(4, len(content)))])
    assert read_rkllm(path).size_bytes == path.stat().st_size


@pytest.mark.parametrize(
    "rest",
    [
        struct.pack("<QQ", 0, 2**63),
        struct.pack("<QQQ", 0, 5, 2**62),
        struct.pack("<QQQ", 0, 131_072, 0) + bytes(13 * 131_072),
        struct.pack("<QQ", 0, 20_000) + b"".join(struct.pack("<QIII", 4, n, 4, n) for n in range(20_000)),
        struct.pack("<QQ", 0, 5_000)
        + b"".join(struct.pack("<Q14sIII", 14, f"{n:014}".encode(), 4, n, 0)[:-4] for n in range(5_000)),
    ],
    ids=["pairs", "key", "zeros", "many keys", "many keys of a known length"],
)
def test_hostile_headers_cost_little(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(b"\xda\xee\xb3\x36" + struct.pack("<I", 3) + rest)
    os.truncate(path, 1 << 33)  # sparse: lengths up to 8 GiB are within the file
    tracemalloc.start()
    started = time.thread_time_ns()  # not the wall's clock: a busy machine is not a fault
    facts = read_rkllm(path)
    seconds = (time.thread_time_ns() - started) / 1e9
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts.platform is None
    assert (seconds < 5, peak_bytes < 64 << 20) == (True, True), (seconds, peak_bytes)


def test_a_model_file_says_what_an_engine_needs(tmp_path: Path) -> None:
    path = write_rkllm(tmp_path / "qwen-w8a8.rkllm")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "vision.rknn").write_bytes(b"x")
    file = read_model_file(path, tmp_path / "cache")
    assert (file.format, file.architecture, file.quantization) == ("rkllm", "qwen2", "w8a8")
    assert (file.target_platform, file.target_cores, file.context_limit, file.context_train) == (
        "RK3588",
        3,
        4096,
        4096,
    )
    assert file.toolkit == "1.3.0"
    assert file.tokenizer == tmp_path / "tokenizer" / "tokenizer.json"
    assert file.vision_encoder == tmp_path / "vision.rknn"
    assert file.prompt_form is None


def test_an_unreadable_header_still_gives_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(b"who knows")
    file = read_model_file(path, tmp_path / "cache")
    assert (file.format, file.architecture, file.quantization, file.name) == ("rkllm", "unknown", "unknown", "m")
    assert (file.context_limit, file.tokenizer, file.vision_encoder) == (None, None, None)


def test_a_gguf_is_a_gguf_whatever_its_name(tmp_path: Path) -> None:
    assert read_model_file(write_tiny_model(tmp_path / "m.rkllm"), tmp_path / "cache").format == "gguf"


@pytest.mark.parametrize("fault", ["missing", "folder"])
def test_no_file_is_one_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "m.rkllm"
    if fault == "folder":
        path.mkdir()
    with pytest.raises(ModelError, match=str(path)):
        read_model_file(path, tmp_path / "cache")


def test_a_folder_of_its_own_goes_before_the_shared_one(tmp_path: Path) -> None:
    model = write_rkllm(tmp_path / "m.rkllm")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert companion(model, "tokenizer.json") == tmp_path / "tokenizer.json"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    assert companion(model, "tokenizer.json") == tmp_path / "m" / "tokenizer.json"


def test_of_several_encoders_none_is_guessed(tmp_path: Path) -> None:
    model = write_rkllm(tmp_path / "m.rkllm")
    for name in ("a.rknn", "b.rknn"):
        (tmp_path / name).write_bytes(b"x")
    assert companion(model, "*.rknn") is None
