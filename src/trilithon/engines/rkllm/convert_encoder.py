"""Vision encoders in ONNX converted to RKNN by the vendor's rknn-toolkit2, in an environment of its own."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from trilithon.engines.rkllm.convert import toolkit_script
from trilithon.engines.rkllm.recipe import CHIPS, Call
from trilithon.engines.toolrun import conversion_log, run_tool
from trilithon.errors import ModelError, TrilithonError, UserError
from trilithon.models.files.rknn import read_rknn
from trilithon.models.store.staging import publish
from trilithon.settings import Configuration

__all__ = ["EncoderRecipe", "PixelScale", "convert_to_rknn", "find_scale"]

_STEPS = {
    "start": "starting rknn-toolkit2",
    "config": "starting rknn-toolkit2",
    "load_onnx": "loading the encoder",
    "build": "compiling",
    "export_rknn": "writing the file",
}
_NO_TOOLKIT = (
    "rknn-toolkit2 {}: on x86-64 Linux, make a virtual environment with Python 3.8 to 3.12, run in it: pip install "
    "rknn-toolkit2, and name it with TRILITHON_RKNN_TOOLKIT=FOLDER"
)
_PREPROCESSOR = "preprocessor_config.json"
_CHANNELS = 3
_LEVELS = 255
_OPTIONS = "--mean and --std"
_NO_PICTURES = f"has not one input of the shape (1, {_CHANNELS}, height, width)"


@dataclass(frozen=True, slots=True)
class PixelScale:
    """A channel's value v of 0 to 255 reaches the encoder as (v / 255 - mean) / std, as `image_mean` and `image_std` of
    Hugging Face's preprocessors say; `source` tells where they are from."""

    mean: tuple[float, ...] = (0.5,) * _CHANNELS
    std: tuple[float, ...] = (0.5,) * _CHANNELS
    source: str = "the default"

    def describe(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"pixels are scaled as (value / {_LEVELS} - mean) / std, mean {mean}, std {std}, by {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRecipe:
    """`source` is an ONNX file, `chip` a name of CHIPS."""

    source: Path
    chip: str
    scale: PixelScale

    @property
    def file_name(self) -> str:
        return f"{self.source.stem}-{self.chip}.rknn"


def convert_to_rknn(recipe: EncoderRecipe, output: Path, configuration: Configuration, progress: Progress) -> Converted:
    """Raises UserError for what can be checked before the conversion, TrilithonError when the toolkit fails."""
    if recipe.chip not in CHIPS:
        raise UserError(f"--chip {recipe.chip}: encoders are converted for {', '.join(CHIPS)}; write one of them")
    if recipe.source.is_dir():
        raise ModelError(f"{recipe.source} is a folder; name the ONNX file of the encoder")
    require_new_file(output, ".rknn")
    python = _toolkit_python(configuration)
    pictures = _takes_pictures(_checked_inputs(python, recipe.source))
    if recipe.scale.source == _OPTIONS and not pictures:
        raise UserError(f"--mean and --std have no effect: {recipe.source} {_NO_PICTURES}; leave them out")
    log = conversion_log(configuration, output)
    with conversion_dir(output, configuration) as work:
        converted = work.folder / output.name
        job = work.folder / "job.json"
        calls = _toolkit_calls(recipe, converted, pictures=pictures)
        content = {"name": "rknn-toolkit2", "class": "rknn.api.RKNN", "folder": str(work.folder), "calls": calls}
        job.write_text(json.dumps(content), encoding="utf-8")
        command = [str(python), str(toolkit_script()), str(job)]
        run_tool(command, log, ToolProgress(progress, steps=_STEPS), inherited=[work.lock])
        require_written(converted, "rknn-toolkit2", log)
        facts = read_rknn(converted)
        if recipe.chip not in facts.platforms:
            names = ", ".join(facts.platforms) or "no chip"
            raise TrilithonError(f"rknn-toolkit2 wrote a file for {names}, not for {recipe.chip} (log: {log})")
        publish(converted, output)
    note = recipe.scale.describe() if pictures else f"pixels are not scaled: {recipe.source.name} {_NO_PICTURES}"
    return Converted(output, log, notes=(note,))


def find_scale(source: Path, mean: str | None, std: str | None) -> PixelScale:
    """From the texts of the options ("0.5,0.5,0.5"), else from a preprocessor_config.json beside `source` or in the
    folder above, else the default. Raises UserError."""
    if mean is not None or std is not None:
        default = PixelScale()
        means = default.mean if mean is None else _channels("--mean", mean)
        deviations = default.std if std is None else _channels("--std", std)
        return PixelScale(means, deviations, _OPTIONS)
    folder = source.absolute().parent
    for path in (folder / _PREPROCESSOR, folder.parent / _PREPROCESSOR):
        if path.is_file():
            return _scale_of(path)
    return PixelScale()


def _channels(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if option == "--std" and not all(value > 0 for value in values):
        raise UserError(f"{option} {text}: write numbers above 0")
    if len(values) != _CHANNELS or not all(abs(value) <= _LEVELS for value in values):
        raise UserError(f"{option} {text}: write three numbers, for red, green and blue, such as 0.5,0.5,0.5")
    return values


def _scale_of(path: Path) -> PixelScale:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("do_normalize") is False:
            return PixelScale((0.0,) * _CHANNELS, (1.0,) * _CHANNELS, path.name)
        texts = [",".join(str(value) for value in content[name]) for name in ("image_mean", "image_std")]
        return PixelScale(_channels("--mean", texts[0]), _channels("--std", texts[1]), path.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"{path} has no image_mean and image_std of three numbers; write --mean and --std") from error


def _toolkit_python(configuration: Configuration) -> Path:
    """The toolkit may also be installed beside Trilithon."""
    folder = configuration.rknn_toolkit
    python = environment_python(folder, "TRILITHON_RKNN_TOOLKIT") if folder else Path(sys.executable)
    if json_output(python, [str(toolkit_script()), "probe", "rknn", "rknn-toolkit2"]).get("toolkit") is None:
        what = f"is not installed in {python.parent.parent}" if folder else "is not set up here"
        raise UserError(_NO_TOOLKIT.format(what))
    return python


def _checked_inputs(python: Path, source: Path) -> list[tuple[str, list[Any]]]:
    """Names and shapes. Raises ModelError for a file that the toolkit cannot convert."""
    try:
        with source.open("rb"):
            facts = json_output(python, [str(toolkit_script()), "onnx", str(source.absolute())])
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror}; check its name") from error
    if "error" in facts or not facts["nodes"]:
        reason = facts.get("error") or "it has no operators"
        raise ModelError(f"{source} is not a complete ONNX file ({reason}); export or download it again")
    for name, fix in (("absent", "copy it there"), ("unknown", "export it with standard operators")):
        if facts[name]:
            what = "needs {} beside it" if name == "absent" else "has operators that ONNX does not define: {}"
            raise ModelError(f"{source} {what.format(', '.join(facts[name][:3]))}; {fix}")
    for name, shape in facts["inputs"]:
        if any(isinstance(side, str) for side in shape):
            sides = ", ".join(map(str, shape))
            raise ModelError(f"{source}: its input {name} has the shape ({sides}); export it with fixed sizes")
    return [(name, shape) for name, shape in facts["inputs"]]


def _takes_pictures(inputs: list[tuple[str, list[Any]]]) -> bool:
    """Whether the toolkit can scale the pixels: a single input of the shape (1, 3, height, width)."""
    return len(inputs) == 1 and len(inputs[0][1]) == 4 and inputs[0][1][1] == _CHANNELS


def _toolkit_calls(recipe: EncoderRecipe, output: Path, *, pictures: bool) -> list[Call]:
    """The methods of `rknn.api.RKNN` to call in order, with the toolkit's names for their parameters: the weights stay
    16 bits wide, as in the vendor's conversions of vision encoders."""
    config: dict[str, object] = {"target_platform": recipe.chip}
    if pictures:
        config["mean_values"] = [[value * _LEVELS for value in recipe.scale.mean]]
        config["std_values"] = [[value * _LEVELS for value in recipe.scale.std]]
    return [
        ("config", [], config),
        ("load_onnx", [], {"model": str(recipe.source.absolute())}),
        ("build", [], {"do_quantization": False}),
        ("export_rknn", [str(output)], {}),
    ]
