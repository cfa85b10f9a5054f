import asyncio
import errno
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Completion
from trilithon.errors import ModelError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic import true_size as synthesis
from trilithon.models.synthetic.architectures import QUANTIZATIONS, Architecture, find_architecture
from trilithon.models.synthetic.true_size import plan_synthetic, write_synthetic
from trilithon.runtime.opening import open_runner
from trilithon.settings import Configuration

TEXT = "the stones carry the weight, and the lintel holds them together"
SMALL = {"layers": 2, "vocabulary": 1000, "feed_forward": 512}


def small(name: str) -> Architecture:
    """Of the same build as a known one, in a few megabytes."""
    model = find_architecture(name)
    return replace(model, embedding=256, heads=4, kv_heads=2, head_size=64, **SMALL)  # type: ignore[arg-type]


def test_the_f16_file_of_qwen2_5_0_5b_is_as_large_as_the_published_one() -> None:
    """Matrices 2 bytes, norms and biases 4, and the vocabulary; published is 994 MB, of which 1.4 MB are longer words
    in its vocabulary than in ours."""
    synthetic = plan_synthetic(find_architecture("qwen2.5-0.5b"))
    weights = synthetic.size_bytes - len(synthetic.head)
    vectors = 24 * (2 * 896 + 896 + 128 + 128) + 896
    assert weights == 494_032_768 * 2 + vectors * 2
    assert synthetic.size_bytes == pytest.approx(994e6, rel=0.002)
    assert {kind for _, _, kind in synthetic.tensors} == {"F16", "F32"}


def test_the_file_is_what_was_planned(tmp_path: Path) -> None:
    synthetic = plan_synthetic(small("qwen2.5-0.5b"), "q8_0")
    told: list[tuple[int, int]] = []
    path = write_synthetic(synthetic, tmp_path / "s.gguf", lambda done, total: told.append((done, total)))
    assert path.stat().st_size == synthetic.size_bytes
    assert told[-1] == (synthetic.size_bytes, synthetic.size_bytes)
    assert [each.name for each in tmp_path.iterdir()] == ["s.gguf"]
    facts = read_gguf(path)
    assert [(each.name, each.shape, each.type) for each in facts.tensors] == list(synthetic.tensors)
    assert (facts.architecture, facts.layers, facts.quantization, facts.vocabulary) == ("qwen2", 2, "Q8_0", 1000)
    assert facts.synthetic
    assert "synthetic" in facts.name
    theirs = gguf.GGUFReader(path)
    assert len(theirs.tensors) == len(facts.tensors)
    assert theirs.fields["trilithon.synthetic"].contents() is True


def test_a_model_file_says_that_it_is_synthetic(tmp_path: Path, tiny: Path) -> None:
    path = write_synthetic(plan_synthetic(small("gemma3-1b")), tmp_path / "s.gguf")
    found = read_model_file(path, tmp_path)
    assert found.synthetic
    assert found.sliding_window == 512
    assert found.capabilities == frozenset()
    assert not read_model_file(tiny, tmp_path).synthetic


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_numbers_are_plausible_weights(tmp_path: Path, quantization: str) -> None:
    path = write_synthetic(plan_synthetic(small("llama3.2-1b"), quantization), tmp_path / "s.gguf")
    content = path.read_bytes()
    kinds = set()
    for tensor in read_gguf(path).tensors:
        kinds.add(tensor.type)
        stored = np.frombuffer(content[tensor.offset :][: tensor.size_bytes], np.uint8)
        rows = stored.reshape(tensor.elements // tensor.shape[0], -1)
        numbers = quants.dequantize(rows, GGMLQuantizationType[tensor.type])
        assert np.isfinite(numbers).all()
        if len(tensor.shape) > 1:
            assert abs(float(numbers.mean())) < 0.004
            assert 0.015 < float(numbers.std()) < 0.06
            assert len({row.tobytes() for row in rows}) == len(rows)
    assert len(kinds) > 1 or quantization == "F32"


def test_the_same_seed_gives_the_same_bytes() -> None:
    synthetic = plan_synthetic(small("qwen3-0.6b"), "q4_0")
    first, again, other = (b"".join(synthetic.chunks(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_memory_stays_small() -> None:
    synthetic = plan_synthetic(find_architecture("qwen2.5-0.5b"), "q4_0")
    tracemalloc.start()
    try:
        assert sum(map(len, synthetic.chunks())) == synthetic.size_bytes
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 120 << 20 < synthetic.size_bytes


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic = plan_synthetic(small("qwen2.5-0.5b"))

    def stop(_: int, __: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(synthetic, tmp_path / "s.gguf", stop)
    assert list(tmp_path.iterdir()) == []

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(synthesis.os, "fsync", full)
    with pytest.raises(ModelError, match=r"No space left on device; name another file"):
        write_synthetic(synthetic, tmp_path / "s.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "s.gguf").write_text("mine", encoding="utf-8")
    with pytest.raises(ModelError, match="exists already"):
        write_synthetic(plan_synthetic(small("qwen2.5-0.5b")), tmp_path / "s.gguf")
    assert (tmp_path / "s.gguf").read_text(encoding="utf-8") == "mine"


def test_a_disk_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(synthesis.os, "statvfs", lambda _: Space)
    with pytest.raises(ModelError, match=r"are needed in .*, 40\.0 KiB are free"):
        write_synthetic(plan_synthetic(small("qwen2.5-0.5b")), tmp_path / "s.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "qwen3-0.6b", "tinyllama-1.1b", "llama3.2-1b", "gemma3-1b"])
def test_llama_cpp_runs_it(name: str, tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path, cache=tmp_path)
    path = write_synthetic(plan_synthetic(small(name), "q4_k_m"), tmp_path / "s.gguf")
    file = read_model_file(path, tmp_path)
    build = next(build for build in LlamaCpp(configuration).builds() if "cpu" in build.units)
    placement = Placement(name="it", file=file, build=build, unit="cpu", settings=Settings(context=512, threads=2))

    async def answer() -> tuple[list[int], int]:
        async with open_runner(placement, tmp_path / "run", configuration) as runner:
            tokens = await runner.tokenize(TEXT)
            _, finished = await runner.complete(Completion(prompt=tokens, max_tokens=8, ignore_eos=True))
            return tokens, finished.timings.predicted_n

    tokens, generated = asyncio.run(answer())
    assert len(tokens) < len(TEXT) / 1.3
    assert generated == 8
