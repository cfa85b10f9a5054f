"""Hugging Face models and GGUF files converted to RKLLM by the vendor's rkllm-toolkit, in an environment of its own."""

import json
import os
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from trilithon.engines.conversion import (
    Converted,
    Progress,
    ToolProgress,
    conversion_dir,
    environment_python,
    json_output,
    require_new_file,
    require_written,
)
from trilithon.engines.rkllm.recipe import RkllmRecipe, check_recipe, toolkit_calls
from trilithon.engines.toolrun import conversion_log, run_tool
from trilithon.errors import UserError
from trilithon.models.store.staging import publish
from trilithon.settings import Configuration

__all__ = ["convert_to_rkllm", "toolkit_script"]

_STEPS = {
    "start": "starting rkllm-toolkit",
    "load_huggingface": "loading the model",
    "load_gguf": "loading the model",
    "build": "quantising",
    "export_rkllm": "writing the file",
}
_NO_TOOLKIT = (
    "rkllm-toolkit {}: on x86-64 Linux, make a virtual environment with Python 3.9 to 3.12, install in it the wheel of "
    "that Python (rkllm_toolkit-1.3.0-cp310-cp310-linux_x86_64.whl for 3.10), which Rockchip publishes under "
    "rkllm-toolkit in airockchip/rknn-llm on GitHub, and name it with TRILITHON_RKLLM_TOOLKIT=FOLDER"
)
# The engine tokenizes with these files, and looks for them in the folder beside the model.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def convert_to_rkllm(recipe: RkllmRecipe, output: Path, configuration: Configuration, progress: Progress) -> Converted:
    """Raises UserError for what can be checked before the conversion, TrilithonError when the toolkit fails."""
    check_recipe(recipe)
    require_new_file(output, ".rkllm")
    _require_free(output.with_suffix(""))
    python = _toolkit_python(configuration)
    cuda = _has_cuda(python, recipe)
    log = conversion_log(configuration, output)
    with conversion_dir(output, configuration) as work:
        converted = work.folder / output.name
        calls = work.folder / "calls.json"
        job = {"name": "rkllm-toolkit", "class": "rkllm.api.RKLLM"}
        job_calls = toolkit_calls(_absolute(recipe), converted, cuda=cuda)
        calls.write_text(json.dumps(job | {"calls": job_calls}), encoding="utf-8")
        command = [str(python), str(toolkit_script()), str(calls)]
        run_tool(command, log, ToolProgress(progress, steps=_STEPS), inherited=[work.lock])
        calls.unlink()
        require_written(converted, "rkllm-toolkit", log)
        if not recipe.from_gguf:
            _copy_tokenizer(recipe.source, work.folder)
        return Converted(output, log, _publish_all(converted, work.folder, output))


def _toolkit_python(configuration: Configuration) -> Path:
    if configuration.rkllm_toolkit is None:
        raise UserError(_NO_TOOLKIT.format("is not set up here"))
    return environment_python(configuration.rkllm_toolkit, "TRILITHON_RKLLM_TOOLKIT")


def _has_cuda(python: Path, recipe: RkllmRecipe) -> bool:
    """Whether torch in the toolkit's environment sees a GPU. Raises UserError where the toolkit is missing, or a GPU
    that the recipe needs."""
    facts = json_output(python, [str(toolkit_script()), "probe", "rkllm", "rkllm-toolkit", "cuda"])
    if facts.get("toolkit") is None:
        raise UserError(_NO_TOOLKIT.format(f"is not installed in {python.parent.parent}"))
    cuda = facts.get("cuda") is True
    if recipe.needs_gpu and not cuda:
        raise UserError(
            f"--algorithm {recipe.algorithm} needs an NVIDIA GPU, and the torch of {python.parent.parent} sees none; "
            "take --algorithm normal"
        )
    return cuda


def toolkit_script() -> Path:
    """Run by the Python of a toolkit's environment."""
    return Path(str(files("trilithon").joinpath("engines", "rkllm", "child", "toolkit.py")))


def _absolute(recipe: RkllmRecipe) -> RkllmRecipe:
    dataset = recipe.dataset.absolute() if recipe.dataset else None
    return replace(recipe, source=recipe.source.absolute(), dataset=dataset)


def _require_free(folder: Path) -> None:
    """The folder beside the output may hold the very model that is converted."""
    if os.path.lexists(folder):
        raise UserError(
            f"{folder} already exists, and the tokenizer's files would go there; name another file with --output"
        )


def _copy_tokenizer(source: Path, work: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file() and not (work / name).exists():
            shutil.copyfile(source / name, work / name)


def _publish_all(converted: Path, work: Path, output: Path) -> tuple[Path, ...]:
    """Moves the other files in `work` into the folder beside the output, and then the output itself."""
    others = [path for path in sorted(work.iterdir()) if path != converted]
    folder = output.with_suffix("")
    if others:
        folder.mkdir()
    try:
        beside = tuple(path.replace(folder / path.name) for path in others)
        publish(converted, output)
    except BaseException:
        if others:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return beside
