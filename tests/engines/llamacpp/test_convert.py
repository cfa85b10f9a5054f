"""With a stand-in for llama.cpp's converter, run by a Python in a folder made like a virtual environment."""

import sys
import tarfile
from pathlib import Path

import pytest

from trilithon.engines.llamacpp.convert import convert_to_gguf
from trilithon.errors import TrilithonError, UserError
from trilithon.settings import Configuration

# known(documentation): ggml-org/llama.cpp@311c2c9 tools/quantize/README.md: convert_hf_to_gguf.py takes a folder
# known(source): gguf 0.19.0 gguf/gguf_writer.py: the progress of "Writing"
# known(guess): --outtype and --outfile of convert_hf_to_gguf.py, and its text for a model that is not supported
CONVERTER = """
import sys
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
sys.stderr.write("Writing:  50%|#####     | 1/2\\n")
if words["--outtype"] == "bf16":
    sys.exit("error: Model Strange is not supported")
if words["--outtype"] != "f32":
    open(words["--outfile"], "w").write(sys.argv[1] + " " + words["--outtype"])
"""


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "CMakeLists.txt").touch()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER, encoding="utf-8")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Qwen2.5-0.5B"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment without the libraries."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    site = tmp_path / "environment" / "site"
    site.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return tmp_path / "environment"


@pytest.fixture
def configuration(tmp_path: Path, environment: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", gguf_converter=environment / "bin/python")


@pytest.fixture
def libraries(environment: Path) -> None:
    for name in ("torch", "transformers", "sentencepiece"):
        (environment / f"site/{name}.py").touch()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("libraries")
def test_a_gguf_is_made_by_llama_cpps_converter(
    configuration: Configuration, source: Path, converter: Path, tmp_path: Path, packed: bool
) -> None:
    place = converter
    if packed:
        place = tmp_path / "llama.tar.gz"
        with tarfile.open(place, "w:gz") as archive:
            archive.add(converter, "llama.cpp-1")
    (tmp_path / "out").mkdir()
    steps: list[tuple[str, float | None]] = []
    converted = convert_to_gguf(
        source, tmp_path / "out/m.gguf", "f16", configuration, lambda *step: steps.append(step), place
    )
    assert converted.path.read_text(encoding="utf-8") == f"{source} f16"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]
    assert ("converting", 0.5) in steps


@pytest.mark.usefixtures("libraries")
def test_the_converters_failures(configuration: Configuration, source: Path, converter: Path, tmp_path: Path) -> None:
    for kind, words in (
        ("bf16", "Model Strange is not supported"),
        ("f32", "wrote no file"),
        ("q4_0", "is first made as f16, bf16, f32, q8_0; then use: trilithon quantize"),
    ):
        with pytest.raises(TrilithonError, match=words):
            convert_to_gguf(source, tmp_path / "m.gguf", kind, configuration, lambda *_: None, converter)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".trilithon-", "m."))]
    (converter / "convert_hf_to_gguf.py").unlink()
    with pytest.raises(UserError, match=r"name another source of llama\.cpp with --converter"):
        convert_to_gguf(source, tmp_path / "m.gguf", "f16", configuration, lambda *_: None, converter)


def test_what_the_converter_lacks_is_named(configuration: Configuration, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs .*sentencepiece; make a virtual environment, run in it: pip install"):
        convert_to_gguf(source, tmp_path / "m.gguf", "f16", configuration, lambda *_: None, tmp_path)
