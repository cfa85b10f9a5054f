"""How a model wants to be run, by Ollama's names: what a Modelfile's PARAMETER and a stored model may say."""

import difflib
import math
from collections.abc import Mapping
from typing import Literal

from trilithon.errors import ModelError

__all__ = ["PASSED_OVER", "Parameter", "check_parameter", "read_parameter"]

Parameter = str | int | float | bool | list[str]

_Kind = Literal["integer", "number", "yes or no", "texts"]
_ENDLESS = math.inf
# api/types.go of Ollama (Options and Runner), with what each must not fall below or go above.
_KNOWN: Mapping[str, tuple[_Kind, float, float]] = {
    "draft_num_predict": ("integer", 0, _ENDLESS),
    "frequency_penalty": ("number", -_ENDLESS, _ENDLESS),
    "main_gpu": ("integer", 0, _ENDLESS),
    "min_p": ("number", 0, 1),
    "mirostat": ("integer", 0, 2),
    "mirostat_eta": ("number", 0, _ENDLESS),
    "mirostat_tau": ("number", 0, _ENDLESS),
    "num_batch": ("integer", 1, _ENDLESS),
    "num_ctx": ("integer", 1, _ENDLESS),
    "num_gpu": ("integer", -1, _ENDLESS),
    "num_keep": ("integer", -1, _ENDLESS),
    "num_predict": ("integer", -2, _ENDLESS),
    "num_thread": ("integer", 0, _ENDLESS),
    "presence_penalty": ("number", -_ENDLESS, _ENDLESS),
    "repeat_last_n": ("integer", -1, _ENDLESS),
    "repeat_penalty": ("number", 0, _ENDLESS),
    "seed": ("integer", -_ENDLESS, _ENDLESS),
    "stop": ("texts", 0, 0),
    "temperature": ("number", 0, _ENDLESS),
    "think": ("yes or no", 0, 0),  # Trilithon's own: in Ollama it belongs to a request
    "top_k": ("integer", -1, _ENDLESS),
    "top_p": ("number", 0, 1),
    "typical_p": ("number", 0, 1),
    "use_mmap": ("yes or no", 0, 0),
}
PASSED_OVER = frozenset(
    {
        *("embedding_only", "f16_kv", "logits_all", "low_vram", "num_gqa", "numa", "penalize_newline"),
        *("rope_frequency_base", "rope_frequency_scale", "tfs_z", "use_mlock", "vocab_only"),
    }
)
"""Parameters of older Ollamas that nothing obeys any more."""

# Go's strconv.ParseBool, which Ollama reads them with.
_BOOLEANS = dict.fromkeys(("1", "t", "true"), True) | dict.fromkeys(("0", "f", "false"), False)
_MOST_DIGITS = 19


def read_parameter(name: str, text: str) -> Parameter:
    """The value that a Modelfile writes. Raises ModelError for an unknown name and what does not fit it."""
    kind = _kind(name)
    try:
        match kind:
            case "texts":
                return [text]
            case "yes or no":
                return _BOOLEANS[text.strip().lower()]
            case "integer" if len(text) <= _MOST_DIGITS:
                return int(_within(name, int(text)))
            case "number":
                return _within(name, float(text))
    except (KeyError, ValueError):
        pass  # told below, like a number of too many digits
    raise _misfit(name, text, kind)


def check_parameter(name: str, value: object) -> Parameter:
    """The value as JSON has it, for which 4096.0 is an integer too. Raises ModelError like `read_parameter`."""
    kind = _kind(name)
    match kind, value:
        case "texts", str():
            return [value]
        case "texts", list() if all(isinstance(each, str) for each in value):
            return list(value)
        case "yes or no", bool():
            return value
        case (("integer" | "number"), bool()):
            pass
        case "integer", (int() | float()) if math.isfinite(value) and value == int(value):
            return int(_within(name, int(value)))
        case "number", (int() | float()):
            return _within(name, float(value))
    raise _misfit(name, value, kind)


def _kind(name: str) -> _Kind:
    if name in _KNOWN:
        return _KNOWN[name][0]
    near = difflib.get_close_matches(name, _KNOWN, 1)
    fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KNOWN)}"
    raise ModelError(f"unknown parameter {name[:80]!r}; {fix}")


def _within(name: str, value: float) -> float:
    _, least, most = _KNOWN[name]
    if not (math.isfinite(value) and least <= value <= most):
        raise _misfit(name, value, _KNOWN[name][0])
    return value


def _misfit(name: str, value: object, kind: _Kind) -> ModelError:
    _, least, most = _KNOWN[name]
    bounds = f" from {least:g}" * math.isfinite(least) + f" to {most:g}" * math.isfinite(most)
    write = {"yes or no": "true or false", "texts": "a text"}.get(kind, f"{kind}{bounds}")
    return ModelError(f"parameter {name} = {str(value)[:80]!r} does not fit; write {write}")
