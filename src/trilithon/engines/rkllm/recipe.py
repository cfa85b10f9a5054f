"""How rkllm-toolkit converts a model, checked against its limits before a conversion that takes hours.

The limits are those of toolkit 1.3.0, from Rockchip's SDK guide: quantisations and NPU cores per chip, context,
algorithms, and the GGUF files that it reads."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trilithon.board.chips import Platform, chips, platforms
from trilithon.errors import ModelError, UserError
from trilithon.models.files.gguf import read_gguf

__all__ = ["CHIPS", "Call", "RkllmRecipe", "check_recipe", "toolkit_calls"]


Call = tuple[str, list[object], dict[str, object]]
"""The name of a method, its positional and its named arguments."""


CHIPS: Mapping[str, Platform] = {name.lower(): platform for name, platform in platforms().items()}
"""By the toolkit's name, in lower case."""

_ALGORITHM = re.compile(r"(?:normal|grq)(?:_r(?P<rank>\d{1,3}))?")
_MOST_RANK = 64
_MOST_CONTEXT, _CONTEXT_STEP = 16_384, 32
_FROM_Q4_0 = "w4a16_g32"
_MOST_DATASET_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RkllmRecipe:
    """`source` is the folder of a Hugging Face model, or a GGUF file. `cores` None means all of the chip, `context`
    None the toolkit's default. `dataset` is a JSON file `[{"input": …, "target": …}, …]` for calibration."""

    source: Path
    chip: str
    quantization: str
    algorithm: str = "normal"
    hybrid_rate: float = 0.0
    context: int | None = None
    cores: int | None = None
    dataset: Path | None = None
    optimization: int = 0

    @property
    def needs_gpu(self) -> bool:
        return self.algorithm.startswith("grq")

    @property
    def from_gguf(self) -> bool:
        return self.source.suffix.lower() == ".gguf"

    @property
    def file_name(self) -> str:
        stem = self.source.stem if self.from_gguf else self.source.absolute().name
        return f"{stem}-{self.chip}-{self.quantization}.rkllm"


def check_recipe(recipe: RkllmRecipe) -> None:
    """Raises UserError, naming a value that works, for a recipe that the toolkit does not support."""
    if recipe.chip not in CHIPS:
        raise UserError(f"--chip {recipe.chip}: rkllm-toolkit supports {', '.join(CHIPS)}; write one of them")
    chip = CHIPS[recipe.chip]
    if recipe.quantization not in chip.quantizations:
        raise UserError(
            f"--quant {recipe.quantization} does not run on {recipe.chip}; use one of {', '.join(chip.quantizations)}"
        )
    cores = chips()[chip.name].npu_cores
    if recipe.cores is not None and not 1 <= recipe.cores <= cores:
        raise UserError(f"--cores {recipe.cores}: the NPU of {recipe.chip} has {cores}; write 1 to {cores}")
    _check_algorithm(recipe)
    _check_numbers(recipe)
    _check_dataset(recipe.dataset)
    _check_source(recipe)


def toolkit_calls(recipe: RkllmRecipe, output: Path, *, cuda: bool) -> list[Call]:
    """The methods of `rkllm.api.RKLLM` to call in order, with the toolkit's names for their parameters."""
    load: Call = ("load_gguf", [], {"model": str(recipe.source)})
    if not recipe.from_gguf:
        load = ("load_huggingface", [], {"model": str(recipe.source), "device": "cuda" if cuda else "cpu"})
    build: dict[str, object] = {
        "do_quantization": True,
        "optimization_level": recipe.optimization,
        "quantized_dtype": recipe.quantization,
        "quantized_algorithm": recipe.algorithm,
        "target_platform": recipe.chip,
        "num_npu_core": recipe.cores or chips()[recipe.chip.upper()].npu_cores,
        "extra_qparams": None,
        "dataset": str(recipe.dataset) if recipe.dataset else None,
        "hybrid_rate": recipe.hybrid_rate,
    }
    if recipe.context is not None:
        build["max_context"] = recipe.context
    return [load, ("build", [], build), ("export_rkllm", [str(output)], {})]


def _check_algorithm(recipe: RkllmRecipe) -> None:
    match = _ALGORITHM.fullmatch(recipe.algorithm)
    if match is None or (match["rank"] is not None and not 1 <= int(match["rank"]) <= _MOST_RANK):
        raise UserError(
            f"--algorithm {recipe.algorithm}: write normal, grq, normal_rN or grq_rN with N from 1 to {_MOST_RANK}"
        )
    if recipe.needs_gpu and not recipe.quantization.startswith("w4a16"):
        family = [name for name in CHIPS[recipe.chip].quantizations if name.startswith("w4a16")]
        fix = f"take --quant {family[0]}" if family else "take --algorithm normal"
        raise UserError(
            f"--algorithm {recipe.algorithm} works with w4a16 and its groups, not with {recipe.quantization}; {fix}"
        )


def _check_numbers(recipe: RkllmRecipe) -> None:
    context = recipe.context
    if context is not None and (not 0 < context <= _MOST_CONTEXT or context % _CONTEXT_STEP):
        raise UserError(f"--context {context}: write a multiple of {_CONTEXT_STEP}, at most {_MOST_CONTEXT}")
    if not 0 <= recipe.hybrid_rate < 1:
        raise UserError(f"--hybrid-rate {recipe.hybrid_rate:g}: write a share from 0 up to, not including, 1")
    if recipe.optimization not in (0, 1):
        raise UserError(f"--optimization {recipe.optimization}: write 0 or 1")


def _check_dataset(dataset: Path | None) -> None:
    if dataset is None:
        return
    form = 'write [{"input": "…", "target": "…"}, …], the prompts in the form of the model\'s chat template'
    try:
        if dataset.stat().st_size > _MOST_DATASET_BYTES:
            raise UserError(f"--dataset {dataset} is larger than 1 GiB; some hundred examples are enough")
        rows = json.loads(dataset.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--dataset {dataset} cannot be read: {error.strerror}; check its name") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--dataset {dataset} is not JSON; {form}") from error
    valid = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    if not valid or any(not isinstance(row.get(key), str) for row in rows for key in ("input", "target")):
        raise UserError(f"--dataset {dataset} has another form; {form}")


def _check_source(recipe: RkllmRecipe) -> None:
    source = recipe.source
    if not recipe.from_gguf:
        if not (source / "config.json").is_file():
            raise ModelError(f"{source} is not a Hugging Face model: it has no config.json; name the model's folder")
        return
    quantization = read_gguf(source).quantization
    if quantization not in ("Q4_0", "F16"):
        raise ModelError(f"{source} is {quantization}, and rkllm-toolkit reads GGUF files of Q4_0 and F16 only")
    if quantization == "Q4_0" and recipe.quantization != _FROM_Q4_0:
        able = [name for name, chip in CHIPS.items() if _FROM_Q4_0 in chip.quantizations]
        fix = f"take --quant {_FROM_Q4_0}" if recipe.chip in able else "take the F16 file"
        raise UserError(f"{source} is Q4_0, which becomes {_FROM_Q4_0} (for {', '.join(able)}); {fix}")
