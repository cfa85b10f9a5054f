"""`trilithon convert ENCODER.onnx --to rknn` with the vendor's converter."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.cli.main import run
from trilithon.models.files.rknn import RknnFacts, read_rknn

SCRIPT = Path(__file__).with_name("rknn_toolkit.py")
Convert = Callable[..., tuple[int, str, str]]


@pytest.fixture
def convert(
    rknn_toolkit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Convert:
    """In `home`: the exit code, stdout and stderr."""
    monkeypatch.setenv("TRILITHON_RKNN_TOOLKIT", str(rknn_toolkit.parent.parent))
    monkeypatch.chdir(home)

    def call(source: Path, *options: str) -> tuple[int, str, str]:
        code = run(["convert", str(source), "--to", "rknn", *options])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def damaged(rknn_toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    subprocess.run([rknn_toolkit, SCRIPT, "damaged", folder], check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["rk3588", "RK3576", "rk3562"])
def test_an_encoder_is_converted_and_described(convert: Convert, encoders: Path, home: Path, chip: str) -> None:
    code, output, errors = convert(encoders / "4.onnx", "--chip", chip, "-o", "v.rknn")
    assert (code, output) == (0, "v.rknn\n")
    facts = RknnFacts(platforms=(chip.lower(),), toolkit="2.5.0", outputs=4, width=32, height=32)
    assert read_rknn(home / "v.rknn") == facts
    *progress, facts_line, note = errors.splitlines()
    assert facts_line == f"for the {chip.upper()}: pictures of 32×32 pixels, 4 outputs, by rknn-toolkit2 2.5.0"
    assert note.endswith("(value / 255 - mean) / std, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5, by the default")
    steps = list(dict.fromkeys(line.partition(" 1")[0].partition(",")[0].rstrip("0123456789% ") for line in progress))
    assert steps == ["starting rknn-toolkit", "loading the encoder", "compiling", "writing the file"]
    assert [path.name for path in home.iterdir() if path.suffix in (".rknn", ".onnx")] == ["v.rknn"]


@pytest.mark.slow
def test_the_facts_as_json_and_the_default_name_and_chip(convert: Convert, encoders: Path, home: Path) -> None:
    code, output, _ = convert(encoders / "1.onnx", "--json", "--mean", "0.48,0.46,0.41")
    facts = json.loads(output)
    assert code == 0
    assert Path(facts.pop("log")).is_file()
    assert facts.pop("notes")[0].endswith(" mean 0.48, 0.46, 0.41, std 0.5, 0.5, 0.5, by --mean and --std")
    assert facts == {
        "path": "1-rk3588.rknn",
        "beside": [],
        "size_bytes": (home / "1-rk3588.rknn").stat().st_size,
        "platforms": ["rk3588"],
        "toolkit": "2.5.0",
        "outputs": 1,
        "width": 32,
        "height": 32,
    }
    code, _, errors = convert(encoders / "1.onnx")
    assert (code, errors.count("\n")) == (2, 1)
    assert "already exists" in errors


@pytest.mark.slow
def test_an_encoder_of_another_input_is_converted_without_a_scale(convert: Convert, damaged: Path, home: Path) -> None:
    code, _, errors = convert(damaged / "flat.onnx")
    assert (code, read_rknn(home / "flat-rk3588.rknn").width) == (0, None)
    *_, facts_line, note = errors.splitlines()
    assert facts_line == "for the RK3588: no pictures, 1 output, by rknn-toolkit2 2.5.0"
    assert note == "pixels are not scaled: flat.onnx has not one input of the shape (1, 3, height, width)"
    code, _, errors = convert(damaged / "flat.onnx", "--mean", "0,0,0", "-o", "v.rknn")
    assert (code, errors.count("\n")) == (2, 1)
    assert "--mean and --std have no effect: " in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("batch", 2, "its input x has the shape (batch, 3, 32, 32); export it with fixed sizes"),
        ("sides", 2, "its input x has the shape (1, 3, height, width); export it with fixed sizes"),
        ("zero", 2, "its input x has the shape (1, 3, ?, 32); export it with fixed sizes"),
        ("operator", 2, "has operators that ONNX does not define: Frobnicate; export it with"),
        ("domain", 2, "has operators that ONNX does not define: FusedThing; export it with"),
        ("unsupported", 1, "build of rknn-toolkit2 failed: ValueError: The input 0 of Unique('o') need to be constant"),
        ("opset", 1, "load_onnx of rknn-toolkit2 failed: ValueError: Unsupport onnx opset 22, need <= 19!"),
        ("weights", 2, "needs weights.bin beside it; copy it there"),
        ("cut", 2, "is not a complete ONNX file (Error parsing message); export or download it again"),
        ("half", 2, "is not a complete ONNX file (Error parsing message); export or download it again"),
        ("empty", 2, "is not a complete ONNX file (it has no operators); export or download it again"),
        ("text", 2, "is not a complete ONNX file (Error parsing message); export or download it again"),
    ],
)
def test_an_encoder_that_cannot_be_converted_is_one_line(
    convert: Convert, damaged: Path, home: Path, name: str, code: int, message: str
) -> None:
    done, output, errors = convert(damaged / f"{name}.onnx", "--chip", "rk3588", "-o", "v.rknn")
    assert (done, output) == (code, "")
    assert message in errors.splitlines()[-1]
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1
    assert code == 1 or errors.count("\n") == 1
    assert not [path for path in home.iterdir() if path.suffix in (".rknn", ".onnx")]
