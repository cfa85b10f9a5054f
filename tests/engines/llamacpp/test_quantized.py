"""A model in fewer bits in the store, with a stand-in for llama-quantize."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from process_table import is_gone
from standin_quantizer import QuantizerStandIn

from trilithon.engines.llamacpp.quantized import _least_bits, plan_quantized, quantized
from trilithon.engines.toolrun import conversions
from trilithon.errors import Interrupted, ModelError, NoRoom, UserError
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.gguf_writer import header
from trilithon.models.files.quantizations import FILE_TYPES
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import model_name
from trilithon.models.synthetic.tiny import requantise
from trilithon.settings import Configuration, load_configuration


@pytest.fixture
def configuration(home: Path) -> Configuration:
    return load_configuration()


@pytest.fixture
def quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizerStandIn:
    standin = QuantizerStandIn(tmp_path / "bin")
    standin.install()
    monkeypatch.setenv("PATH", f"{standin.folder}{os.pathsep}{os.environ['PATH']}")
    return standin


def model(*paths: Path) -> Manifest:
    """Of files that lie where they are."""
    files = [
        StoredFile(
            role="weights",
            digest="",
            size_bytes=path.stat().st_size,
            name=path.name,
            format="gguf",
            path=path.absolute(),
        )
        for path in paths
    ]
    template = StoredFile(role="template", digest="0" * 64, size_bytes=1, name="chat_template.jinja", format="text")
    return Manifest(name=model_name("mine"), files=(*files, template), source="here", created=now())


@pytest.mark.usefixtures("quantizer")
def test_one_new_file_takes_the_place_of_the_weights(configuration: Configuration, tiny: Path) -> None:
    told: list[float | None] = []
    kept: list[tuple[int, int]] = []
    with ModelStore.open(configuration) as store:
        plan = plan_quantized(model(tiny), "q8_0", store, configuration)
        assert (plan.kind, plan.weights.quantization) == ("Q8_0", "F16")
        made = quantized(plan, store, configuration, lambda _, part: told.append(part), lambda *done: kept.append(done))
        assert [(each.role, each.name) for each in made.files] == [
            ("weights", "mine-q8_0.gguf"),
            ("template", "chat_template.jinja"),
        ]
        new = made.files[0]
        assert (new.quantization, new.size_bytes) == ("Q8_0", kept[-1][1])
        assert read_gguf(store.blob_path(new.digest)).quantization == "Q8_0"
    assert told == [0.5, 1.0]
    assert sorted(each.name for each in conversions(configuration).iterdir()) == ["mine-q8_0.gguf.log"]


def test_what_cannot_be_done_is_told_before(configuration: Configuration, tiny: Path, tmp_path: Path) -> None:
    coarse = requantise(tiny, tmp_path / "coarse.gguf", "Q4_0")
    encoded = replace(model(tiny).files[0], name="m.rkllm", format="rkllm")
    cases: list[tuple[Manifest, str, type[Exception], str]] = [
        (model(tiny), "Q9", UserError, "Q9 is not a quantization"),
        (model(tiny), "../../x", UserError, "is not a quantization"),
        (model(coarse), "Q8_0", ModelError, "coarse.gguf is already Q4_0, and gets worse if quantised again"),
        (replace(model(tiny), files=(encoded,)), "Q8_0", ModelError, "and m.rkllm is not one; leave it out"),
    ]
    lost = tmp_path / tiny.name
    with ModelStore.open(configuration) as store:
        for manifest, kind, error, words in cases:
            with pytest.raises(error, match=words):
                plan_quantized(manifest, kind, store, configuration)
        lost.write_bytes(tiny.read_bytes())
        gone = model(lost)
        lost.unlink()
        with pytest.raises(ModelError, match="is missing"):
            plan_quantized(gone, "Q8_0", store, configuration)
    assert not configuration.data.exists()
    assert not conversions(configuration).exists()


def test_the_finest_of_several_is_taken(configuration: Configuration, tiny: Path, tmp_path: Path) -> None:
    coarse = requantise(tiny, tmp_path / "coarse.gguf", "Q4_0")
    manifest = model(coarse, tiny)
    files = [replace(manifest.files[0], quantization="Q4_0"), replace(manifest.files[1], quantization="F16")]
    with ModelStore.open(configuration) as store:
        plan = plan_quantized(replace(manifest, files=tuple(files)), "Q8_0", store, configuration)
    assert plan.weights.path == tiny


def test_what_can_never_fit_is_not_begun(configuration: Configuration, tmp_path: Path) -> None:
    huge = tmp_path / "huge.gguf"
    disk = os.statvfs(tmp_path)
    elements = disk.f_blocks * disk.f_frsize  # as many bytes in Q8_0 as the disk has, and more
    rows = elements // 4096 + 1
    with huge.open("wb") as file:
        file.write(header({"general.architecture": "llama", "general.file_type": 1}, [("x", (4096, rows), "F16")]))
        file.truncate(file.tell() + rows * 4096 * 2)
    with ModelStore.open(configuration) as store, pytest.raises(NoRoom, match=r"are needed in .* are free"):
        plan_quantized(model(huge), "Q8_0", store, configuration)


@pytest.mark.parametrize("silent", [False, True])
def test_whoever_stops_it_keeps_nothing(
    configuration: Configuration, quantizer: QuantizerStandIn, tiny: Path, silent: bool
) -> None:
    (quantizer.folder / ("silent" if silent else "slow")).touch()

    def leave() -> None:
        if (quantizer.folder / "pid").exists():
            raise Interrupted("the client left")

    with ModelStore.open(configuration) as store:
        plan = plan_quantized(model(tiny), "Q8_0", store, configuration)
        with pytest.raises(Interrupted):
            quantized(plan, store, configuration, lambda *_: None, lambda *_: None, check=leave)
    assert is_gone(quantizer.pid())
    assert_nothing_kept(configuration)


def test_whoever_stops_it_while_it_is_kept_keeps_nothing(
    configuration: Configuration, quantizer: QuantizerStandIn, tiny: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise Interrupted("the client left")

    with ModelStore.open(configuration) as store:
        plan = plan_quantized(model(tiny), "Q8_0", store, configuration)
        with pytest.raises(Interrupted):
            quantized(plan, store, configuration, lambda *_: None, stop)
    assert_nothing_kept(configuration)


def assert_nothing_kept(configuration: Configuration) -> None:
    assert [each.name for each in conversions(configuration).iterdir()] == ["mine-q8_0.gguf.log"]
    left = [each for each in configuration.data.rglob("*") if each.is_file() and each.parent.name != "locks"]
    assert left == []


def test_no_kind_takes_less_than_its_name_says() -> None:
    bits = {kind: _least_bits(kind) for kind, _ in FILE_TYPES.values()}
    assert set(bits.values()) == {1, 2, 3, 4, 5, 6, 8, 16, 32}
    assert (bits["F32"], bits["BF16"], bits["Q4_K_M"], bits["IQ2_XXS"], bits["TQ1_0"]) == (32, 16, 4, 2, 1)
