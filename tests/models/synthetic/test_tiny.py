from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from trilithon.errors import ModelError
from trilithon.models.files.gguf import GgufFacts, read_gguf
from trilithon.models.synthetic.tiny import requantise, scramble_block, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("synthetic") / "tiny.gguf")


def contents(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {tensor.name: data[tensor.offset :][: tensor.size_bytes] for tensor in read_gguf(path).tensors}


def metadata(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def weights(path: Path) -> dict[str, np.ndarray]:
    types: dict[str, str] = {tensor.name: tensor.type for tensor in read_gguf(path).tensors}
    return {
        name: quants.dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType[types[name]])
        for name, data in contents(path).items()
    }


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, architecture: str) -> None:
    paths = [
        write_tiny_model(tmp_path / f"{n}.gguf", seed=seed, architecture=architecture)
        for n, seed in enumerate((1, 1, 2))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    assert paths[0].stat().st_size < 2 << 20


def test_arguments_reach_the_file(tmp_path: Path) -> None:
    path = write_tiny_model(
        tmp_path / "t.gguf", layers=7, embedding=96, vocabulary=3000, context=512, architecture="gemma3", template="T"
    )
    facts: GgufFacts = read_gguf(path)
    assert (facts.layers, facts.embedding, facts.vocabulary, facts.context_train) == (7, 96, 3000, 512)
    assert (facts.chat_template, facts.sliding_window, facts.windowed) == ("T", 256, (True,) * 5 + (False, True))


@pytest.mark.parametrize("wrong", [{"architecture": "t5"}, {"embedding": 50}, {"vocabulary": 100}])
def test_impossible_models_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no tiny model"):
        write_tiny_model(tmp_path / "t.gguf", **wrong)  # type: ignore[arg-type]


def test_scrambling_moves_the_blocks_of_one_layer_alone(tiny: Path, tmp_path: Path) -> None:
    source = requantise(tiny, tmp_path / "q8.gguf")
    before, after = contents(source), contents(scramble_block(source, tmp_path / "broken.gguf", block=1, seed=3))
    for name, data in before.items():
        matrix = name.startswith("blk.1.") and "norm" not in name
        assert (after[name] != data) == matrix, name
        assert sorted(after[name]) == sorted(data), name
    name = "blk.1.ffn_up.weight"
    blocks = [{data[at : at + 34] for at in range(0, len(data), 34)} for data in (before[name], after[name])]
    assert blocks[0] == blocks[1]
    assert metadata(tmp_path / "broken.gguf") == metadata(source)


def test_scrambling_a_block_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no block 2; choose a smaller number"):
        scramble_block(tiny, tmp_path / "broken.gguf", block=2)
    assert not (tmp_path / "broken.gguf").exists()


@pytest.mark.parametrize(("quantization", "most"), [("Q8_0", 0.005), ("Q5_0", 0.04), ("Q4_0", 0.08), ("F16", 0.0)])
def test_requantised_weights_are_near(tiny: Path, tmp_path: Path, quantization: str, most: float) -> None:
    target = requantise(tiny, tmp_path / "r.gguf", quantization)
    assert read_gguf(target).quantization == quantization
    before, after = weights(tiny), weights(target)
    for name, numbers in before.items():
        scale = float(np.abs(numbers).max())
        assert float(np.abs(after[name] - numbers).mean()) <= most * scale, name
    types = {tensor.name: tensor.type for tensor in read_gguf(target).tensors}
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == quantization
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_requantising_keeps_the_rest_of_the_metadata(tiny: Path, tmp_path: Path) -> None:
    before, after = metadata(tiny), metadata(requantise(tiny, tmp_path / "r.gguf"))
    assert after.pop("general.file_type") == 7
    assert before.pop("general.file_type") == 1
    assert after == before


def test_requantising_to_what_the_library_cannot_write(tiny: Path, tmp_path: Path) -> None:
    for quantization in ("Q4_K_M", "Q6_K", "nonsense"):
        with pytest.raises(ModelError, match=f"cannot requantise to {quantization}"):
            requantise(tiny, tmp_path / "r.gguf", quantization)
