import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.files.gguf import bytes_per_token, kv_bytes_per_position, kv_bytes_read, read_gguf
from trilithon.models.files.quantizations import TENSOR_TYPES
from trilithon.models.synthetic.tiny import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", template="{{ messages }}")


def write(path: Path, architecture: str, values: dict[str, object], tensors: dict[str, tuple[int, ...]]) -> Path:
    """A GGUF of zeros; shapes are numpy's (rows first)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key.replace("*", architecture), value)
        elif isinstance(value, str):
            writer.add_string(key.replace("*", architecture), value)
        else:
            assert isinstance(value, int)
            writer.add_uint32(key.replace("*", architecture), value)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_facts_of_a_tiny_model(tiny: Path) -> None:
    facts = read_gguf(tiny)
    assert (facts.version, facts.architecture, facts.name, facts.size_label) == (3, "llama", "Tiny", "tiny")
    assert (facts.quantization, facts.quantization_name) == ("F16", "F16")
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_size, facts.embedding) == (2, 4, 2, 16, 64)
    assert (facts.context_train, facts.vocabulary, facts.bos_token) == (2048, 512, 1)
    assert facts.chat_template == "{{ messages }}"
    assert facts.windowed == (False, False)
    assert facts.size_bytes == tiny.stat().st_size


def test_tensors_agree_with_the_library(tiny: Path) -> None:
    ours = {tensor.name: tensor for tensor in read_gguf(tiny).tensors}
    theirs = gguf.GGUFReader(tiny).tensors
    assert len(theirs) == len(ours) == 21
    for tensor in theirs:
        mine = ours[tensor.name]
        assert (mine.type, mine.shape) == (tensor.tensor_type.name, tuple(tensor.shape))
        assert (mine.elements, mine.size_bytes, mine.offset) == (tensor.n_elements, tensor.n_bytes, tensor.data_offset)


def test_block_sizes_agree_with_the_library() -> None:
    library = {int(kind): (int(kind), kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    known = {number: TENSOR_TYPES.get(number) for number in library}
    assert known == library


def test_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    weights = {"token_embd.weight": (100, 32), "blk.0.ffn_up.weight": (64, 32), "blk.1.ffn_up.weight": (64, 32)}
    path = write(tmp_path / "twice.gguf", "llama", {"*.block_count": 2}, weights)
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"))
    assert "two tensors have the same name" in refusal(path)


def test_tied_output_is_read_whole_and_an_embedding_by_the_row(tmp_path: Path) -> None:
    values: dict[str, object] = {"*.block_count": 1}
    weights = {"token_embd.weight": (100, 32), "blk.0.ffn_up.weight": (64, 32)}
    tied = read_gguf(write(tmp_path / "tied.gguf", "llama", values, weights))
    assert bytes_per_token(tied) == (100 * 32 + 64 * 32) * 2
    own = read_gguf(write(tmp_path / "own.gguf", "llama", values, {**weights, "output.weight": (100, 32)}))
    assert bytes_per_token(own) == (32 + 64 * 32 + 100 * 32) * 2


def test_experts_count_as_far_as_they_are_used(tmp_path: Path) -> None:
    path = write(
        tmp_path / "experts.gguf",
        "qwen3moe",
        {"*.block_count": 1, "*.expert_count": 8, "*.expert_used_count": 2},
        {
            "token_embd.weight": (10, 32),
            "output.weight": (10, 32),
            "blk.0.ffn_up_exps.weight": (8, 64, 32),
            "blk.0.ffn_up_shexp.weight": (64, 32),
            "blk.0.ffn_gate_inp.weight": (8, 32),
        },
    )
    assert bytes_per_token(read_gguf(path)) == (32 + 10 * 32 + 2 * 64 * 32 + 64 * 32 + 8 * 32) * 2


def test_layers_that_only_speculation_runs_are_not_read(tmp_path: Path) -> None:
    weights = {"token_embd.weight": (10, 32), "blk.0.ffn_up.weight": (64, 32), "blk.1.ffn_up.weight": (64, 32)}
    path = write(tmp_path / "d.gguf", "glm4moe", {"*.block_count": 2, "*.nextn_predict_layers": 1}, weights)
    facts = read_gguf(path)
    assert (facts.layers, facts.draft_layers) == (1, 1)
    assert bytes_per_token(facts) == (10 * 32 + 64 * 32) * 2


def attention(layers: int, keys: int) -> dict[str, tuple[int, ...]]:
    weights: dict[str, tuple[int, ...]] = {"token_embd.weight": (10, 32)}
    for layer in range(layers):
        weights |= {f"blk.{layer}.attn_k.weight": (keys, 32), f"blk.{layer}.attn_v.weight": (keys, 32)}
    return weights


def test_windowed_layers_read_no_more_than_their_window(tmp_path: Path) -> None:
    values: dict[str, object] = {"*.block_count": 12, "*.attention.sliding_window": 512}
    facts = read_gguf(write(tmp_path / "window.gguf", "gemma3", values, attention(12, 64)))
    assert facts.windowed == (True, True, True, True, True, False) * 2
    assert kv_bytes_per_position(facts) == 12 * 2 * 64 * 2
    assert kv_bytes_read(facts, 100) == 100 * kv_bytes_per_position(facts)
    assert kv_bytes_read(facts, 4096) == 2 * 64 * 2 * (2 * 4096 + 10 * 512)
    assert bytes_per_token(facts, 4096) == bytes_per_token(facts) + kv_bytes_read(facts, 4096)


def test_a_window_pattern_in_the_file_counts_before_the_architecture(tmp_path: Path) -> None:
    pattern: dict[str, object] = {
        "*.block_count": 3,
        "*.attention.sliding_window": 8,
        "*.attention.sliding_window_pattern": [True, False, True],
    }
    facts = read_gguf(write(tmp_path / "pattern.gguf", "gemma3", pattern, attention(3, 32)))
    assert facts.windowed == (True, False, True)


def test_kv_bytes_by_type_and_by_layer(tmp_path: Path) -> None:
    weights = attention(2, 64) | {"blk.1.attn_k.weight": (32, 32), "blk.1.attn_v.weight": (32, 32)}
    weights |= {"blk.2.ssm_in.weight": (32, 32)}
    facts = read_gguf(write(tmp_path / "mixed.gguf", "jamba", {"*.block_count": 3}, weights))
    assert kv_bytes_per_position(facts) == 2 * (64 + 32) * 2
    assert kv_bytes_per_position(facts, "q8_0", "q4_0") == (64 + 32) // 32 * (34 + 18)
    with pytest.raises(ModelError, match="unknown KV type q9"):
        kv_bytes_per_position(facts, "q9")


def test_fused_attention_takes_its_width_from_the_metadata(tmp_path: Path) -> None:
    values: dict[str, object] = {"*.block_count": 1, "*.embedding_length": 32, "*.attention.head_count": 4}
    weights: dict[str, tuple[int, ...]] = {"token_embd.weight": (10, 32), "blk.0.attn_qkv.weight": (96, 32)}
    assert kv_bytes_per_position(read_gguf(write(tmp_path / "fused.gguf", "gpt2", values, weights))) == 2 * 32 * 2


def test_an_unknown_file_type_falls_back_to_the_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "t.gguf", "llama", {"general.file_type": 999}, {"token_embd.weight": (10, 32)})
    assert read_gguf(path).quantization == "F16"


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.gguf")
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "empty.gguf").touch()
    assert "is empty" in refusal(tmp_path / "empty.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "not a regular file" in refusal(tmp_path / "pipe.gguf")
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(100), "it starts with 50 4b 03 04"),
        (b"hello, world", "it starts with 'hell'"),
        (b"\xff\xfe\x00\x00", "it starts with ff fe 00 00"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"GG", "it starts with 'GG'"),
        (b"GGUF", "is truncated"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(64), "version 1"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(64), "version 9"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(64), "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16 + bytes(64), "claims 18446744073709551615 metadata"),
        (b"GGUF" + (3).to_bytes(4, "little") + bytes(64), "does not say its architecture"),
    ],
)
def test_refuses_what_is_no_gguf(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_cut_file_says_how_much_is_missing(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    end = max(tensor.offset + tensor.size_bytes for tensor in read_gguf(tiny).tensors)
    path.write_bytes(tiny.read_bytes()[: end - 1000])
    assert "1000 bytes are missing" in refusal(path)
    path.write_bytes(tiny.read_bytes()[:5000])
    assert "ends within its header" in refusal(path) or "claims" in refusal(path)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "part.gguf", "llama", {"split.count": 3}, {"token_embd.weight": (10, 32)})
    assert "--merge" in refusal(path)


def test_long_vocabularies_are_stepped_over_quickly(tmp_path: Path) -> None:
    tokens = [f"token{number}" for number in range(200_000)]
    path = write(tmp_path / "v.gguf", "llama", {"tokenizer.ggml.tokens": tokens}, {"token_embd.weight": (10, 32)})
    started = time.monotonic()
    assert read_gguf(path).vocabulary == 200_000
    assert time.monotonic() - started < 5.0  # 0.04 s on an idle machine; the library's reader takes 10 s


def read_or_refuse(path: Path) -> None:
    try:
        facts = read_gguf(path)
        assert bytes_per_token(facts, 100) >= 0
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def header(tiny: Path) -> bytes:
    """Where damage is interesting: all of the header and the first weights."""
    return tiny.read_bytes()[: read_gguf(tiny).tensors[0].offset + 64]


@settings(max_examples=300, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8),
    length=st.none() | st.integers(0, 1 << 20),
    padding=st.sampled_from([0, 400_000]),
)
@example(places=[], length=None, padding=400_000)
def test_damage_gives_a_result_or_a_refusal(
    header: bytes,
    tmp_path_factory: pytest.TempPathFactory,
    places: list[tuple[int, int]],
    length: int | None,
    padding: int,
) -> None:
    content = bytearray(header)
    for place, byte in places:
        content[place % len(content)] = byte
    if length is not None:
        del content[length % len(content) :]
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(bytes(content) + bytes(padding))
    started = time.process_time()
    read_or_refuse(path)
    assert time.process_time() - started < 5.0


STRING, ARRAY, BYTE = 8, 9, 0


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["empty strings", "small arrays", "long texts", "long keys", "holes", "skipped strings"]
)
def test_a_header_of_many_small_things_costs_little(tmp_path: Path, kind: str) -> None:
    """A file of any size, mostly holes, whose every number is allowed by itself."""
    value = {
        "empty strings": struct.pack("<IIQ", ARRAY, STRING, 1 << 22),
        "skipped strings": struct.pack("<IIQ", ARRAY, STRING, 1 << 20),
        "small arrays": struct.pack("<IIQ", ARRAY, BYTE, 4096),
        "long texts": struct.pack("<IQ", STRING, 1 << 24),
        "long keys": struct.pack("<I?", 7, True),
        "holes": struct.pack("<IIQ", ARRAY, BYTE, 1 << 24),
    }[kind]
    behind = {"small arrays": 4096, "long texts": 1 << 24, "holes": 1 << 24}.get(kind, 0)
    behind = {"empty strings": 8 << 22, "skipped strings": 8 << 20}.get(kind, behind)
    count = {"small arrays": 8000, "long keys": 700}.get(kind, 60)
    path = tmp_path / "costly.gguf"
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, count))
        for number in range(count):
            key = b"%d" % number
            file.write(text(key.rjust(60_000, b"k") if kind == "long keys" else key) + value)
            file.seek(behind, 1)
        file.truncate(20 << 30)
    started = time.process_time()
    if not kind.endswith("strings"):  # of them nothing is kept, and counting each would take minutes
        tracemalloc.start()
    try:
        said = refusal(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        path.unlink()
    assert "is damaged" in said or "has no weights" in said or "does not say" in said
    assert "\n" not in said
    assert peak_bytes < 120 << 20
    assert time.process_time() - started < 20  # 0.1 to 3 s; what is not bounded takes minutes


@pytest.mark.slow
def test_absurd_lengths_take_no_memory(tiny: Path, header: bytes, tmp_path: Path) -> None:
    """Every 8 bytes of the header in turn become a huge number: each length and count is among them."""
    path = tmp_path / "huge.gguf"
    generator = random.Random(1)
    places = [*generator.sample(range(4, len(header) - 8), 300), 8, 16, 24]
    tracemalloc.start()
    try:
        for place in places:
            path.write_bytes(
                header[:place] + (1 << generator.randrange(24, 64)).to_bytes(8, "little") + header[place + 8 :]
            )
            read_or_refuse(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 << 20
