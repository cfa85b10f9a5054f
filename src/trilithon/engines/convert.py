"""Models turned into other files by their makers' tools: rkllm-toolkit in an environment of its own, and the converter
that comes with llama.cpp's source. What fails or is stopped leaves nothing behind but its log."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from trilithon.engines.llamacpp.source import DEFAULT_VERSION, fetch, open_source
from trilithon.engines.rkllm.recipe import RkllmRecipe, check_recipe, toolkit_calls
from trilithon.engines.toolrun import conversion_log, conversions, run_tool
from trilithon.errors import TrilithonError, UserError
from trilithon.models.store.staging import StagingDir, publish, staging_dir
from trilithon.settings import Configuration

__all__ = ["GGUF_TYPES", "Converted", "Progress", "convert_to_gguf", "convert_to_rkllm"]

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction of it that is done, None where that is unknown."""

GGUF_TYPES = ("f16", "bf16", "f32", "q8_0")
"""What convert_hf_to_gguf.py writes; finer choices are llama-quantize's."""

_PROBE_SECONDS = 120.0
_STAGES = {
    "start": "starting rkllm-toolkit",
    "load_huggingface": "loading the model",
    "load_gguf": "loading the model",
    "build": "quantising",
    "export_rkllm": "writing the file",
}
_BAR = re.compile(r"(?:^|\s)(\d{1,3})%\|")  # tqdm's, as both tools draw them
_NO_TOOLKIT = (
    "rkllm-toolkit {}: on x86-64 Linux, make a virtual environment with Python 3.9 to 3.12, install in it the wheel of "
    "that Python (rkllm_toolkit-1.3.0-cp310-cp310-linux_x86_64.whl for 3.10), which Rockchip publishes under "
    "rkllm-toolkit in airockchip/rknn-llm on GitHub, and name it with TRILITHON_RKLLM_TOOLKIT=FOLDER"
)
_GGUF_NEEDS = ("torch", "transformers", "sentencepiece", "numpy")
# What a model of Hugging Face's form is tokenised with: the runtime's engine looks for it beside the model.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Converted:
    """`beside` are further files that belong to it, in a folder of its name."""

    path: Path
    log: Path
    beside: tuple[Path, ...] = ()


def convert_to_rkllm(recipe: RkllmRecipe, output: Path, configuration: Configuration, progress: Progress) -> Converted:
    """Raises UserError for what can be known beforehand, TrilithonError when the toolkit fails."""
    check_recipe(recipe)
    _require_new(output, ".rkllm")
    _require_free(_beside(output))
    python = _toolkit_python(configuration)
    cuda = _probed(python, recipe)
    log = conversion_log(configuration, output)
    with _work(output, configuration) as work:
        made = work.folder / output.name
        calls = work.folder / "calls.json"
        calls.write_text(json.dumps(toolkit_calls(_absolute(recipe), made, cuda=cuda)), encoding="utf-8")
        run_tool([str(python), str(_driver()), str(calls)], log, _ConvertProgress(progress), held=[work.lock])
        calls.unlink()
        if not made.is_file() or not made.stat().st_size:
            raise TrilithonError(f"rkllm-toolkit ended well and wrote no file; see what it said in {log}")
        if not recipe.from_gguf:
            _copy_tokenizer(recipe.source, work.folder)
        return Converted(output, log, _put(made, work.folder, output))


def convert_to_gguf(
    source: Path,
    output: Path,
    kind: str,
    configuration: Configuration,
    progress: Progress,
    converter: Path | None = None,
) -> Converted:
    """`converter` is a folder or an archive of llama.cpp's source, taken instead of the one that is fetched. Raises
    UserError for what can be known beforehand, TrilithonError when the converter fails."""
    if kind not in GGUF_TYPES:
        raise UserError(
            f"--quant {kind}: a GGUF is first made as {', '.join(GGUF_TYPES)}; then use: trilithon quantize"
        )
    if not (source / "config.json").is_file():
        raise UserError(f"{source} is no model of Hugging Face's form: it has no config.json; name its folder")
    _require_new(output, ".gguf")
    python = _converter_python(configuration)
    log = conversion_log(configuration, output)
    with _work(output, configuration) as work:
        progress("fetching llama.cpp's converter", None)
        place = converter or fetch(DEFAULT_VERSION, configuration.cache)
        program = open_source(place, work.folder / "source").folder / "convert_hf_to_gguf.py"
        if not program.is_file():
            raise UserError(f"{place} has no {program.name}; name another source of llama.cpp with --converter")
        made = work.folder / output.name
        words = [str(python), str(program), str(source.absolute()), "--outfile", str(made), "--outtype", kind]
        run_tool(words, log, _ConvertProgress(progress, "converting"), held=[work.lock])
        if not made.is_file() or not made.stat().st_size:
            raise TrilithonError(f"the converter ended well and wrote no file; see what it said in {log}")
        publish(made, output)
        return Converted(output, log)


class _ConvertProgress:
    """Tells from a tool's lines what it does and how far it is."""

    def __init__(self, progress: Progress, stage: str = "") -> None:
        self._progress, self._stage = progress, stage
        if stage:
            progress(stage, None)

    def __call__(self, line: str) -> None:
        if line.startswith("::"):
            self._stage = _STAGES.get(line[2:], line[2:])
            self._progress(self._stage, None)
        elif bar := _BAR.search(line):
            self._progress(self._stage, min(int(bar[1]), 100) / 100)


def _toolkit_python(configuration: Configuration) -> Path:
    named = configuration.rkllm_toolkit
    if named is None:
        raise UserError(_NO_TOOLKIT.format("is not set up here"))
    return _python_of(named, "TRILITHON_RKLLM_TOOLKIT")


def _probed(python: Path, recipe: RkllmRecipe) -> bool:
    """Whether the toolkit's environment has a GPU. Raises UserError where the toolkit, or a GPU that it needs, is not
    there."""
    facts = _answer(python, [str(_driver()), "probe", "cuda"])
    if facts.get("toolkit") is None:
        raise UserError(_NO_TOOLKIT.format(f"is not installed in {python.parent.parent}"))
    cuda = facts.get("cuda") is True
    if recipe.needs_gpu and not cuda:
        raise UserError(
            f"--algorithm {recipe.algorithm} needs an NVIDIA GPU, and the torch of {python.parent.parent} sees none; "
            "take --algorithm normal"
        )
    return cuda


def _converter_python(configuration: Configuration) -> Path:
    """Raises UserError, naming what its libraries lack."""
    named = configuration.gguf_converter
    python = _python_of(named, "TRILITHON_GGUF_CONVERTER") if named else Path(sys.executable)
    asked = "import importlib.util as u, json, sys; print(json.dumps({m: bool(u.find_spec(m)) for m in sys.argv[1:]}))"
    lacking = [name for name, there in _answer(python, ["-c", asked, *_GGUF_NEEDS]).items() if not there]
    if lacking:
        raise UserError(
            f"llama.cpp's converter needs {', '.join(lacking)}; make a virtual environment, run in it: pip install "
            f"{' '.join(_GGUF_NEEDS)} protobuf, and name it with TRILITHON_GGUF_CONVERTER=FOLDER"
        )
    return python


def _python_of(named: Path, variable: str) -> Path:
    python = named / "bin/python" if named.is_dir() else named
    if not python.is_file() or not os.access(python, os.X_OK):
        raise UserError(f"{variable} names {named}, where there is no bin/python; name a virtual environment")
    return python.absolute()


def _answer(python: Path, words: list[str]) -> dict[str, Any]:
    """What the last line of its output says in JSON."""
    try:
        done = subprocess.run(
            [python, *words], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
        found = json.loads((done.stdout.decode(errors="replace").strip().splitlines() or [""])[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise UserError(f"{python} does not work ({type(error).__name__}); name another virtual environment") from error
    if not isinstance(found, dict):
        raise UserError(f"{python} does not work (it says {str(found)[:40]!r}); name another virtual environment")
    return found


def _driver() -> Path:
    return Path(str(files("trilithon").joinpath("engines", "rkllm", "child", "toolkit.py")))


def _absolute(recipe: RkllmRecipe) -> RkllmRecipe:
    dataset = recipe.dataset.absolute() if recipe.dataset else None
    return replace(recipe, source=recipe.source.absolute(), dataset=dataset)


def _require_new(output: Path, suffix: str) -> None:
    if output.suffix != suffix:
        raise UserError(f"--output {output}: write a name that ends with {suffix}, by which engines know what it is")
    if output.exists():
        raise UserError(f"{output} is there already; remove it, or name another file with --output")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.absolute().parent} does not exist; make it, or name another file with --output")


def _beside(output: Path) -> Path:
    """The folder for what belongs to the file: engines look there first."""
    return output.with_suffix("")


def _require_free(folder: Path) -> None:
    """What is in a folder of that name is somebody's: it may be the very model that is converted."""
    if os.path.lexists(folder):
        raise UserError(
            f"{folder} is there already, where what belongs to the file is to lie; name another file with --output"
        )


@contextlib.contextmanager
def _work(output: Path, configuration: Configuration) -> Iterator[StagingDir]:
    try:
        with staging_dir(output, conversions(configuration)) as work:
            yield work
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror}; name another file with --output") from error


def _copy_tokenizer(source: Path, work: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file() and not (work / name).exists():
            shutil.copyfile(source / name, work / name)


def _put(made: Path, work: Path, output: Path) -> tuple[Path, ...]:
    """Move what belongs to the file into a folder of its name, and then the file: it is there whole or not at all."""
    others = [each for each in sorted(work.iterdir()) if each != made]
    folder = _beside(output)
    if others:
        folder.mkdir()
    try:
        beside = tuple(each.replace(folder / each.name) for each in others)
        publish(made, output)
    except BaseException:
        if others:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return beside
