"""With a stand-in for rkllm-toolkit, in a folder made like a virtual environment: it records how it is called."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.engines.rkllm.convert import convert_to_rkllm
from trilithon.engines.rkllm.recipe import RkllmRecipe
from trilithon.errors import TrilithonError, UserError
from trilithon.settings import Configuration

# known(report): airockchip/rknn-llm#7: load_huggingface, build, export_rkllm in this order; 0 is success
# known(guess): other parameters of these calls, load_gguf and -1 for a failure; noted without an address
# known(log): airockchip/rknn-llm#386: the progress of "Building model"
# known(guess): rkllm-toolkit's progress goes to stderr, and embedding.bin lies beside the model
# known(guess): a call that returned 0 may have written no file
TOOLKIT = """
import json, os, sys, time
from pathlib import Path

CALLS = Path(__file__).parent / "calls.json"


class RKLLM:
    def __init__(self):
        self.calls = []

    def _note(self, name, **words):
        self.calls.append([name, words])
        CALLS.write_text(json.dumps(self.calls))
        return -1 if os.environ.get("FAIL") == name else 0

    def load_huggingface(self, model, model_lora=None, device="cuda", dtype="float32", custom_config=None,
                         load_weight=True):
        return self._note("load_huggingface", model=model, device=device)

    def load_gguf(self, model):
        return self._note("load_gguf", model=model)

    def build(self, do_quantization, optimization_level, quantized_dtype, quantized_algorithm, target_platform,
              num_npu_core, extra_qparams, dataset, hybrid_rate, max_context=4096):
        for percent in (0, 50, 100):
            sys.stderr.write("\\rBuilding model: %3d%%|##| 1/2" % percent)
        sys.stderr.write("\\n")
        if os.environ.get("FAIL") == "slow":
            Path(os.environ["SIGN"]).touch()
            time.sleep(60)
        return self._note("build", quantized_dtype=quantized_dtype, target_platform=target_platform,
                          num_npu_core=num_npu_core, hybrid_rate=hybrid_rate, max_context=max_context,
                          dataset=dataset, optimization_level=optimization_level,
                          quantized_algorithm=quantized_algorithm)

    def export_rkllm(self, path, export_tokenizer=True, export_embedding=True):
        if os.environ.get("FAIL") != "no file":
            Path(path).write_bytes(b"masked")
            Path(path).with_name("embedding.bin").write_bytes(b"rows")
        return self._note("export_rkllm", path=path)
"""


class Toolkit:
    def __init__(self, folder: Path):
        self.folder = folder
        self._site = folder / "site"
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin/python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{self._site}" exec {sys.executable} "$@"\n', encoding="utf-8")
        python.chmod(0o755)

    def install(self, *, cuda: bool | None = None) -> None:
        (self._site / "rkllm").mkdir(parents=True)
        (self._site / "rkllm/__init__.py").touch()
        (self._site / "rkllm/api.py").write_text(TOOLKIT, encoding="utf-8")
        if cuda is not None:
            torch = f"class cuda:\n    is_available = staticmethod(lambda: {cuda})\n"
            (self._site / "torch.py").write_text(torch, encoding="utf-8")

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, words) for name, words in json.loads((self._site / "rkllm/calls.json").read_text("utf-8"))]


@pytest.fixture
def toolkit(tmp_path: Path) -> Toolkit:
    return Toolkit(tmp_path / "toolkit")


@pytest.fixture
def configuration(tmp_path: Path, toolkit: Toolkit) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", rkllm_toolkit=toolkit.folder)


@pytest.fixture
def recipe(tmp_path: Path) -> RkllmRecipe:
    source = tmp_path / "Qwen2.5-0.5B"
    source.mkdir()
    (source / "config.json").write_text("{}", encoding="utf-8")
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")
    return RkllmRecipe(source=source, chip="rk3576", quantization="w4a16_g64", hybrid_rate=0.25, context=8192)


def left(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_a_conversion_calls_the_toolkit_and_leaves_the_file(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, tmp_path: Path
) -> None:
    toolkit.install(cuda=False)
    (tmp_path / "out").mkdir()
    told: list[tuple[str, float | None]] = []
    done = convert_to_rkllm(
        recipe, tmp_path / "out/model.rkllm", configuration, lambda text, part: told.append((text, part))
    )
    assert done.path.read_bytes() == b"masked"
    assert left(tmp_path / "out") == {"model.rkllm", "model"}
    assert left(tmp_path / "out/model") == {"embedding.bin", "tokenizer.json"} == {each.name for each in done.beside}
    names = [name for name, _ in toolkit.calls]
    assert names == ["load_huggingface", "build", "export_rkllm"]
    words = dict(toolkit.calls)
    assert words["load_huggingface"] == {"model": str(recipe.source), "device": "cpu"}
    assert words["build"] == {
        "quantized_dtype": "w4a16_g64",
        "quantized_algorithm": "normal",
        "target_platform": "rk3576",
        "num_npu_core": 2,
        "hybrid_rate": 0.25,
        "max_context": 8192,
        "dataset": None,
        "optimization_level": 0,
    }
    assert [text for text, part in told if part is None] == [
        "starting rkllm-toolkit",
        "loading the model",
        "quantising",
        "writing the file",
    ]
    assert [part for _, part in told if part is not None] == [0.0, 0.5, 1.0]
    assert "Building model" in done.log.read_text(encoding="utf-8")


def test_a_gpu_is_used_and_grq_needs_one(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, tmp_path: Path
) -> None:
    toolkit.install(cuda=True)
    convert_to_rkllm(replace(recipe, algorithm="grq"), tmp_path / "m.rkllm", configuration, lambda *_: None)
    assert toolkit.calls[0][1]["device"] == "cuda"
    other = Toolkit(tmp_path / "other")
    other.install(cuda=False)
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU, and the torch of .* sees none; take --algorithm normal"):
        convert_to_rkllm(
            replace(recipe, algorithm="grq_r4"),
            tmp_path / "n.rkllm",
            replace(configuration, rkllm_toolkit=other.folder),
            lambda *_: None,
        )


def test_a_gguf_goes_another_way(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, tiny: Path, tmp_path: Path
) -> None:
    toolkit.install()
    done = convert_to_rkllm(replace(recipe, source=tiny), tmp_path / "m.rkllm", configuration, lambda *_: None)
    assert toolkit.calls[0] == ("load_gguf", {"model": str(tiny)})
    assert [each.name for each in done.beside] == ["embedding.bin"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("load_huggingface", r"load_huggingface of rkllm-toolkit gave -1 \(log: .*m\.rkllm\.log\)"),
        ("build", "build of rkllm-toolkit gave -1"),
        ("export_rkllm", "export_rkllm of rkllm-toolkit gave -1"),
        ("no file", "reported success but wrote no file"),
    ],
)
def test_a_failure_leaves_its_log_alone(
    toolkit: Toolkit,
    configuration: Configuration,
    recipe: RkllmRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    words: str,
) -> None:
    toolkit.install()
    monkeypatch.setenv("FAIL", fault)
    before = left(tmp_path)
    with pytest.raises(TrilithonError, match=words):
        convert_to_rkllm(recipe, tmp_path / "m.rkllm", configuration, lambda *_: None)
    assert left(tmp_path) == before | {"cache"}


def test_ctrl_c_ends_the_toolkit_and_leaves_nothing(toolkit: Toolkit, recipe: RkllmRecipe, tmp_path: Path) -> None:
    toolkit.install()
    sign = tmp_path / "sign"
    environment = os.environ | {
        "FAIL": "slow",
        "SIGN": str(sign),
        "TRILITHON_RKLLM_TOOLKIT": str(toolkit.folder),
        "TRILITHON_CACHE": str(tmp_path / "cache"),
    }
    words = [sys.executable, "-c", "from trilithon.cli.main import entry; entry()", "convert", str(recipe.source)]
    words += ["--to", "rkllm", "--chip", "rk3588", "--quant", "w8a8", "--output", str(tmp_path / "m.rkllm")]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        for _ in range(1200):
            if sign.exists():
                break
            time.sleep(0.05)
        assert sign.exists()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().splitlines()[-1] == "error: stopped; nothing was kept"
    assert not [each for each in tmp_path.iterdir() if each.name.startswith((".trilithon-", "m."))]
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_what_a_killed_one_left_is_cleared(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, tmp_path: Path
) -> None:
    """Its tool too: nobody reads what it says any more."""
    toolkit.install()
    (tmp_path / "out").mkdir()
    sign = tmp_path / "sign"
    environment = os.environ | {
        "FAIL": "slow",
        "SIGN": str(sign),
        "TRILITHON_RKLLM_TOOLKIT": str(toolkit.folder),
        "TRILITHON_CACHE": str(configuration.cache),
        "TRILITHON_DATA": str(configuration.data),
    }
    words = [sys.executable, "-c", "from trilithon.cli.main import entry; entry()"]
    more = ["convert", str(recipe.source), "--to", "rkllm", "--chip", "rk3588", "--quant", "w8a8"]
    output = tmp_path / "out/m.rkllm"
    process = subprocess.Popen([*words, *more, "--output", str(output)], env=environment, stderr=subprocess.PIPE)
    with process:
        for _ in range(600):
            if sign.exists():
                break
            time.sleep(0.05)
        process.kill()
        process.communicate()
    assert len(left(tmp_path / "out")) == 1
    pruned = subprocess.run([*words, "prune"], env=environment, capture_output=True, text=True, check=True)
    assert "0 unfinished conversions" in pruned.stdout  # its tool lives
    for pid in _working_in(tmp_path / "out"):
        os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        pruned = subprocess.run([*words, "prune"], env=environment, capture_output=True, text=True, check=True)
        if "1 unfinished conversion," in pruned.stdout:
            break
    assert left(tmp_path / "out") == set()


def _working_in(folder: Path) -> list[int]:
    """The tools that hold a folder in it."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            held = [each.readlink() for each in (process / "fd").iterdir()] if process.name.isdigit() else []
        except OSError:  # gone, or another user's
            continue
        if any(each.is_relative_to(folder) for each in held):
            found.append(int(process.name))
    return found


def test_a_folder_of_that_name_is_left_alone(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe
) -> None:
    """It may be the very one that is converted."""
    toolkit.install()
    (recipe.source / "embedding.bin").write_bytes(b"mine")
    output = recipe.source.parent / f"{recipe.source.name}.rkllm"
    with pytest.raises(UserError, match=r"Qwen2\.5-0\.5B already exists, and the tokenizer's files would go there"):
        convert_to_rkllm(recipe, output, configuration, lambda *_: None)
    assert not toolkit.folder.joinpath("site/rkllm/calls.json").exists()
    assert (recipe.source / "embedding.bin").read_bytes() == b"mine"


def test_a_file_that_came_there_meanwhile_stays(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, tmp_path: Path
) -> None:
    toolkit.install()
    output = tmp_path / "m.rkllm"

    def another(text: str, _: float | None) -> None:
        if text == "quantising":
            output.write_bytes(b"theirs")

    before = left(tmp_path)
    with pytest.raises(UserError, match=r"m\.rkllm: File exists; name another file with --output"):
        convert_to_rkllm(recipe, output, configuration, another)
    assert output.read_bytes() == b"theirs"
    assert left(tmp_path) == before | {"cache", "m.rkllm"}


def test_without_the_toolkit_it_says_where_to_get_it(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, tmp_path: Path
) -> None:
    for setting, words in (
        (None, r"is not set up here: .* Python 3\.9 to 3\.12, .*airockchip/rknn-llm on GitHub.*_RKLLM_TOOLKIT"),
        (toolkit.folder, "is not installed in .*toolkit: on x86-64 Linux"),
        (tmp_path / "nowhere", "where there is no bin/python; name a virtual environment"),
    ):
        with pytest.raises(UserError, match=words):
            convert_to_rkllm(
                recipe, tmp_path / "m.rkllm", replace(configuration, rkllm_toolkit=setting), lambda *_: None
            )


@pytest.mark.parametrize("said", ["hello", "[1]", "5", ""])
def test_a_python_that_does_not_work(
    toolkit: Toolkit, configuration: Configuration, recipe: RkllmRecipe, said: str
) -> None:
    (toolkit.folder / "bin/python").write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"does not work .*; name another virtual environment"):
        convert_to_rkllm(recipe, recipe.source / "m.rkllm", configuration, lambda *_: None)


def test_names_that_cannot_be_written(configuration: Configuration, recipe: RkllmRecipe, tmp_path: Path) -> None:
    (tmp_path / "m.rkllm").touch()
    for output, words in (
        (tmp_path / "m.rkllm", "already exists"),
        (tmp_path / "m.bin", "ends with .rkllm"),
        (tmp_path / "no/m.rkllm", "does not exist; make it"),
    ):
        with pytest.raises(UserError, match=words):
            convert_to_rkllm(recipe, output, configuration, lambda *_: None)
