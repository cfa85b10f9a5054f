import hashlib
import random
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.files.gguf import bytes_per_token, read_gguf
from trilithon.models.files.gguf_parts import part_paths
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.architectures import find_architecture
from trilithon.models.synthetic.tiny import requantise, scramble_block
from trilithon.models.synthetic.true_size import plan_synthetic


def write_part(path: Path, number: int, count: int, tensors: dict[str, tuple[int, int]], total: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if number:  # later parts say nothing but which they are
        writer.kv_data[0].pop("general.architecture")
    else:
        writer.add_name("Split")
        writer.add_block_count(2)
        writer.add_chat_template("{% if tools %}x{% endif %}")
    writer.add_key_value("split.no", number, gguf.GGUFValueType.UINT16)
    writer.add_key_value("split.count", count, gguf.GGUFValueType.UINT16)
    writer.add_key_value("split.tensors.count", total, gguf.GGUFValueType.INT32)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.full(shape, number, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split_model(folder: Path) -> list[Path]:
    """Three parts; the first has the metadata and, as with --no-tensor-first-split, no tensor."""
    parts: list[dict[str, tuple[int, int]]] = [
        {},
        {"token_embd.weight": (10, 32), "blk.0.ffn_up.weight": (64, 32)},
        {"blk.1.ffn_up.weight": (64, 32)},
    ]
    return [
        write_part(folder / f"m-{number + 1:05}-of-00003.gguf", number, 3, tensors, 3)
        for number, tensors in enumerate(parts)
    ]


@pytest.mark.parametrize("named", [0, 1, 2])
def test_facts_are_those_of_all_parts_whichever_is_named(tmp_path: Path, named: int) -> None:
    paths = split_model(tmp_path)
    facts = read_gguf(paths[named])
    assert (facts.path, facts.parts) == (paths[0], tuple(paths))
    assert (facts.name, facts.architecture, facts.layers) == ("Split", "llama", 2)
    assert facts.size_bytes == sum(path.stat().st_size for path in paths)
    assert facts.parameters == 10 * 32 + 2 * 64 * 32
    assert bytes_per_token(facts) == facts.parameters * 2


def test_a_model_file_in_parts(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    told: list[tuple[int, int]] = []
    found = read_model_file(paths[1], tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert (found.path, found.parts) == (paths[0], tuple(paths))
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert found.sha256 == hashlib.sha256(digests.encode()).hexdigest()
    assert told[-1] == (found.size_bytes, found.size_bytes)
    assert told == sorted(told)
    assert found.capabilities == {"tools"}


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[2].unlink()
    assert "m-00003-of-00003.gguf is missing; download it too" in refusal(paths[0])
    paths[1].unlink()
    assert "m-00002-of-00003.gguf and 1 others" in refusal(paths[0])


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    alone = paths[0].rename(tmp_path / "model.gguf")
    assert "name all parts like model-00001-of-00003.gguf" in refusal(alone)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    write_part(paths[2], 1, 3, {"blk.1.ffn_up.weight": (64, 32)}, 3)
    assert "is not part 3 of 3" in refusal(paths[0])
    write_part(paths[2], 2, 3, {"blk.0.ffn_up.weight": (64, 32)}, 3)
    assert "do not belong together" in refusal(paths[0])
    write_part(paths[2], 2, 3, {"blk.1.ffn_up.weight": (64, 32), "more.weight": (2, 32)}, 3)
    assert "they have 4 tensors and not 3" in refusal(paths[0])
    paths[2].write_bytes(paths[1].read_bytes()[:-40])
    assert "m-00003-of-00003.gguf is truncated" in refusal(paths[0])


def test_what_works_on_one_file_refuses_parts(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    for work in (
        lambda: scramble_block(paths[0], tmp_path / "x.gguf", block=0),
        lambda: requantise(paths[0], tmp_path),
    ):
        with pytest.raises(ModelError, match="one of several parts; join them with: llama-gguf-split --merge"):
            work()


@pytest.mark.parametrize("name", ["m.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-1-of-3.gguf"])
def test_other_names_are_no_parts(name: str) -> None:
    assert part_paths(Path(name)) == (Path(name),)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    part=st.integers(0, 2),
    places=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.none() | st.integers(0, 1 << 16),
)
def test_damage_in_any_part_gives_a_result_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, part: int, places: list[tuple[int, int]], length: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "parts"
    folder.mkdir(exist_ok=True)
    paths = split_model(folder)
    content = bytearray(paths[part].read_bytes())
    for place, byte in places:
        content[place % len(content)] = byte
    if length is not None:
        del content[length % len(content) :]
    paths[part].write_bytes(bytes(content))
    started = time.process_time()
    try:
        facts = read_gguf(paths[random.Random(len(content)).randrange(3)])
        assert facts.size_bytes > 0
    except ModelError as error:
        assert "\n" not in str(error)
    assert time.process_time() - started < 5.0


def test_the_metadata_of_a_file_of_four_gigabytes_is_read_at_once(tmp_path: Path) -> None:
    """Llama 3.2 1B in F32: 4.9 GB, of which all but the header is a hole."""
    synthetic = plan_synthetic(find_architecture("llama3.2-1b"), "F32")
    assert synthetic.size_bytes > 4e9
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(synthetic.head)
        file.truncate(synthetic.size_bytes)
    tracemalloc.start()
    try:
        facts = read_gguf(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (facts.parameters, facts.vocabulary, facts.size_bytes) == (1_235_814_432, 128_256, synthetic.size_bytes)
    assert peak_bytes < 50 << 20
    took = []
    for _ in range(5):
        started = time.process_time()
        read_gguf(path)
        took.append(time.process_time() - started)
    assert min(took) < 0.2  # 0.03 s on an idle machine
