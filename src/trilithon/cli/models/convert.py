"""`trilithon convert` and `trilithon quantize`: convert a model with the tools of its engine."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilithon.cli.models.commands import complete_model_or_file
from trilithon.cli.output import say
from trilithon.cli.words import WordChoice, complete_chip
from trilithon.errors import UserError

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.engines.conversion import Converted
    from trilithon.settings import Configuration

    _Maker = Callable[[Configuration, CompileProgress], Converted]

__all__ = ["convert", "quantize"]

_FOR_RKLLM = ("chip", "quant", "algorithm", "hybrid_rate", "context", "cores", "dataset", "optimization")
# Options of another format are refused, not ignored.
_OPTIONS = {"rkllm": _FOR_RKLLM, "gguf": ("quant", "converter"), "rknn": ("chip", "mean", "std")}
_SOURCES = {"rkllm": "the folder of a model, or a GGUF", "gguf": "the folder of a model", "rknn": "an ONNX file"}
_PATH = click.Path(path_type=Path)


@click.command("convert")
@click.argument("source", type=_PATH)
@click.option("--to", "target", type=WordChoice(list(_OPTIONS)), required=True, help="The format to convert to.")
@click.option(
    "--chip",
    shell_complete=complete_chip,
    help="rkllm, rknn: the target chip (rk3588, rk3576, rk3562, rv1126b). [default for rknn: rk3588]",
)
@click.option("--quant", help="rkllm: w8a8, w4a16, … [required]; gguf: f16, bf16, f32 or q8_0. [default: f16]")
@click.option("--algorithm", help="rkllm: normal, grq, or one with a rank, such as normal_r16. [default: normal]")
@click.option("--hybrid-rate", type=float, help="rkllm: share of the groups in the finer quantisation. [default: 0]")
@click.option("--context", type=int, help="rkllm: maximum context length, a multiple of 32. [default: the toolkit's]")
@click.option("--cores", type=int, help="rkllm: NPU cores. [default: all that the chip has]")
@click.option("--dataset", type=_PATH, help="rkllm: JSON file with calibration examples.")
@click.option("--optimization", type=int, help="rkllm: 0 or 1, for better quality and maybe slower. [default: 0]")
@click.option("--converter", type=_PATH, help="gguf: llama.cpp source whose converter is used. [default: fetched]")
@click.option(
    "--mean", help="rknn: image_mean of red, green and blue. [default: preprocessor_config.json's, or 0.5,0.5,0.5]"
)
@click.option("--std", help="rknn: image_std, likewise.")
@click.option("-o", "--output", type=_PATH, help="The file to write. [default: here, named after SOURCE]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(source: Path, target: str, output: Path | None, as_json: bool, **options: Any) -> None:
    """Convert SOURCE to an RKLLM file or a GGUF (from a folder in Hugging Face's format; rkllm also from a GGUF), or to
    an RKNN file (from a vision encoder in ONNX).

    rkllm needs a virtual environment with rkllm-toolkit (TRILITHON_RKLLM_TOOLKIT), rknn one with rknn-toolkit2
    (TRILITHON_RKNN_TOOLKIT), gguf one with torch and transformers (TRILITHON_GGUF_CONVERTER). Takes minutes to hours,
    and memory of several times the size of the model."""
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.cli.signals import stoppable
    from trilithon.settings import load_configuration

    misplaced = [name for name in options if options[name] is not None and name not in _OPTIONS[target]]
    if misplaced:
        raise UserError(
            "--{option} has no effect with --to {target}; leave it out",
            option=misplaced[0].replace("_", "-"),
            target=target,
        )
    if not source.exists():
        raise UserError("{source} does not exist; name {what}", source=source, what=_SOURCES[target])
    make = {"rkllm": _to_rkllm, "gguf": _to_gguf, "rknn": _to_rknn}[target](source, output, options)
    with stoppable("stopped; nothing was kept"), CompileProgress() as progress:
        made = make(load_configuration(), progress)
    facts = _rknn_facts(made.path) if target == "rknn" else {}
    if as_json:
        files = {
            "path": str(made.path),
            "beside": list(map(str, made.beside)),
            "log": str(made.log),
            "notes": made.notes,
        }
        say(json.dumps(files | {"size_bytes": made.path.stat().st_size} | facts, indent=2, ensure_ascii=False))
        return
    say(made.path)
    for line in [*made.beside, *([_rknn_line(facts)] if facts else []), *made.notes]:
        say(line, err=True)


@click.command("quantize")
@click.argument("source", shell_complete=complete_model_or_file)
@click.argument("quant")
@click.option("-o", "--output", type=_PATH, help="The file to write. [default: here, named after SOURCE and QUANT]")
@click.option("--again", is_flag=True, help="Accept a SOURCE that is already quantised (quality drops further).")
def quantize(source: str, quant: str, output: Path | None, again: bool) -> None:
    """Quantise the model SOURCE, a GGUF or a name, to QUANT: Q4_K_M, Q8_0, …

    Uses the llama-quantize of a build of llama.cpp; `trilithon engines build` compiles one. Q6_0 and IQ2_K to IQ6_K are
    ik_llama.cpp's, and run there alone."""
    from trilithon.cli.engines.progress import CompileProgress
    from trilithon.cli.models.commands import locate_model
    from trilithon.cli.signals import stoppable
    from trilithon.engines.llamacpp.quantize import quantize as make
    from trilithon.models.files.file_names import read_file_name
    from trilithon.settings import load_configuration

    configuration = load_configuration()
    path = locate_model(source, (), configuration)
    output = output or Path(f"{read_file_name(path.name).base or path.stem}-{quant.lower()}.gguf")
    with stoppable("stopped; nothing was kept"), CompileProgress() as progress:
        made = make(path, output, quant, configuration, progress, again=again)
    say(made)


def _to_rkllm(source: Path, output: Path | None, options: dict[str, Any]) -> "_Maker":
    from trilithon.engines.rkllm.convert import convert_to_rkllm
    from trilithon.engines.rkllm.recipe import CHIPS, RkllmRecipe

    for name in ("chip", "quant"):
        if not options[name]:
            raise UserError(
                "--to rkllm needs --{name}; for example --chip {chip} --quant w8a8", name=name, chip=next(iter(CHIPS))
            )
    values = {name: options[name] for name in _FOR_RKLLM if name != "quant" and options[name] is not None}
    values |= {"chip": values["chip"].lower(), "quantization": options["quant"].lower()}
    recipe = RkllmRecipe(source=source, **values)
    return partial(convert_to_rkllm, recipe, output or Path(recipe.file_name))


def _to_gguf(source: Path, output: Path | None, options: dict[str, Any]) -> "_Maker":
    from trilithon.engines.llamacpp.convert import convert_to_gguf

    kind = (options["quant"] or "f16").lower()
    target = output or Path(f"{source.absolute().name}-{kind}.gguf")
    return partial(convert_to_gguf, source, target, kind, converter=options["converter"])


def _to_rknn(source: Path, output: Path | None, options: dict[str, Any]) -> "_Maker":
    from trilithon.board.chips import platform_of, platforms
    from trilithon.engines.rkllm.convert_encoder import EncoderRecipe, convert_to_rknn, find_scale

    chip = (options["chip"] or next(iter(platforms()))).lower()
    scale = find_scale(source, options["mean"], options["std"])
    recipe = EncoderRecipe(source=source, chip=platform_of(chip).lower() or chip, scale=scale)
    return partial(convert_to_rknn, recipe, output or Path(recipe.file_name))


def _rknn_facts(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from trilithon.models.files.rknn import read_rknn

    return asdict(read_rknn(path))


def _rknn_line(facts: Mapping[str, Any]) -> str:
    """As the file's own description has it."""
    chips = ", ".join(facts["platforms"]).upper()
    pictures = f"pictures of {facts['width']}×{facts['height']} pixels" if facts["width"] else "no pictures"
    outputs = f"{facts['outputs']} output{'s' if facts['outputs'] != 1 else ''}"
    return f"for the {chips}: {pictures}, {outputs}, by rknn-toolkit2 {facts['toolkit']}"
