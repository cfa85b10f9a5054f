import shutil
from pathlib import Path

import pytest

from trilithon.engines.llamacpp import programs as programs_module
from trilithon.engines.llamacpp.quantize import find_quantizer, quantize
from trilithon.engines.registry import Registered, add, remove
from trilithon.errors import TrilithonError, UserError
from trilithon.models.synthetic.tiny import requantise
from trilithon.settings import Configuration

# known(source): ggml-org/llama.cpp@007dbbf src/llama-quant.cpp: a line for each tensor, with "converting to"
# known(log): ggml-org/llama.cpp#6745: lines of llama-quantize with sizes
# known(source): ggml-org/llama.cpp@007dbbf src/llama-quant.cpp: "failed to quantize", "requires an importance matrix!"
# known(guess): "invalid ftype", and what else makes llama-quantize fail
# Says what it does as llama-quantize does, and copies its source.
PROGRAM = """#!/bin/sh
[ "$1" = --allow-requantize ] && shift
echo "[   1/   2]  output_norm.weight - [  64, 1, 1, 1], type = f32, size = 0.003 MiB"
echo "[   2/   2]  token_embd.weight - [  64, 512, 1, 1], type = f16, converting to q4_0"
[ "$3" = Q8_0 ] && echo "error: disk says no" && exit 1
[ "$3" = NVFP4 ] && echo "llama_quantize: invalid ftype 'NVFP4'" && exit 1
[ "$3" = IQ1_S ] && echo " ERROR: this quantization requires an importance matrix!" && exit 1
[ "$3" = Q4_1 ] && echo "llama_model_quantize: failed to quantize: basic_ios::clear: iostream error" && exit 1
[ "$3" = Q5_0 ] && exec head -c 5000 "$1" > "$2"
cp "$1" "$2"
"""


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(programs_module, "_WHEEL", "no-such-package")
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def build(tmp_path: Path, configuration: Configuration) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    for name, script in (("llama-server", "#!/bin/sh\necho 'version: 1 (abc)' >&2\n"), ("llama-quantize", PROGRAM)):
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)
    add(configuration, Registered(name="native", folder=folder))
    return folder


def test_it_is_found_beside_a_build_or_on_path(configuration: Configuration, build: Path, tmp_path: Path) -> None:
    assert find_quantizer(configuration) == build / "llama-quantize"
    (build / "llama-quantize").rename(tmp_path / "path/llama-quantize")
    assert find_quantizer(configuration) == tmp_path / "path/llama-quantize"
    (tmp_path / "path/llama-quantize").unlink()
    with pytest.raises(UserError, match="no build here has llama-quantize; compile one with: trilithon engines build"):
        find_quantizer(configuration)


def test_a_fork_quantises_only_to_what_it_alone_has(configuration: Configuration, build: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="IQ4_K is a quantization of ik_llama"):
        find_quantizer(configuration, "IQ4_K")
    fork = shutil.copytree(build, tmp_path / "fork")
    (fork / "llama-server").write_text("#!/bin/sh\necho 'version: 0 (0.1.5)' >&2 # --run-time-repack\n")
    remove(configuration, "native")
    add(configuration, Registered(name="fork", folder=fork))
    add(configuration, Registered(name="native", folder=build))
    assert find_quantizer(configuration, "IQ4_K") == fork / "llama-quantize"
    assert find_quantizer(configuration, "Q4_K_M") == build / "llama-quantize"


@pytest.mark.usefixtures("build")
def test_the_file_comes_whole_and_progress_is_told(configuration: Configuration, tiny: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    (tmp_path / "out").mkdir()
    made = quantize(tiny, tmp_path / "out/q.gguf", "q4_0", configuration, lambda *words: told.append(words))
    assert made.read_bytes() == tiny.read_bytes()
    assert told == [("quantising", 0.5), ("quantising", 1.0)]
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["q.gguf"]


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("q8_0", "disk says no"),
        ("q5_0", "is truncated"),
        ("q9", "is not a quantization"),
        ("nvfp4", "^NVFP4 is unknown to the llama-quantize of this build; take for example Q4_K_M"),
        ("iq1_s", "^IQ1_S needs an importance matrix; take for example Q4_K_M"),
        ("q4_1", "is full; free some"),
    ],
)
def test_failures_leave_nothing(
    configuration: Configuration, tiny: Path, tmp_path: Path, kind: str, words: str
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(TrilithonError, match=words):
        quantize(tiny, tmp_path / "out/q.gguf", kind, configuration, lambda *_: None)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("build")
def test_a_quantised_source_is_refused_unless_wanted(configuration: Configuration, tiny: Path, tmp_path: Path) -> None:
    source = requantise(tiny, tmp_path / "s.gguf", "Q8_0")
    with pytest.raises(UserError, match=r"is already Q8_0, .*; take its F16 file, or add --again"):
        quantize(source, tmp_path / "q.gguf", "q4_0", configuration, lambda *_: None)
    quantize(source, tmp_path / "q.gguf", "q4_0", configuration, lambda *_: None, again=True)
    with pytest.raises(UserError, match="already exists"):
        quantize(source, tmp_path / "q.gguf", "q4_0", configuration, lambda *_: None, again=True)
