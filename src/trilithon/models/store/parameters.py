"""The parameters of a model by Ollama's names: what PARAMETER in a Modelfile and a stored model may say."""

import math
from collections.abc import Mapping
from typing import Literal

from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.suggestions import alternatives
from trilithon.tables import table_beside

__all__ = ["IGNORED_PARAMETERS", "Parameter", "check_parameter", "read_parameter"]

Parameter = str | int | float | bool | list[str]

_Kind = Literal["integer", "number", "yes or no", "texts"]
_UNLIMITED = math.inf
# Name → kind, minimum, maximum (api/types.go of Ollama: Options and Runner).
_KNOWN: Mapping[str, tuple[_Kind, float, float]] = table_beside(__file__, "parameters.toml")
IGNORED_PARAMETERS = frozenset(
    {
        *("embedding_only", "f16_kv", "logits_all", "low_vram", "num_gqa", "numa", "penalize_newline"),
        *("rope_frequency_base", "rope_frequency_scale", "tfs_z", "use_mlock", "vocab_only"),
    }
)
"""Parameters of older Ollama versions that have no effect any more."""

# Go's strconv.ParseBool, which Ollama reads them with.
_BOOLEANS = dict.fromkeys(("1", "t", "true"), True) | dict.fromkeys(("0", "f", "false"), False)
_MOST_DIGITS = 19


def read_parameter(name: str, text: str) -> Parameter:
    """Parse the text of a Modelfile. Raises ModelError for an unknown name and a value that does not fit."""
    kind = _kind(name)
    try:
        match kind:
            case "texts":
                return [text]
            case "yes or no":
                return _BOOLEANS[text.strip().lower()]
            case "integer" if len(text) <= _MOST_DIGITS:
                return int(_in_range(name, int(text)))
            case "number":
                return _in_range(name, float(text))
    except (KeyError, ValueError):
        pass  # reported below, as is a number with too many digits
    raise _invalid(name, text, kind)


def check_parameter(name: str, value: object) -> Parameter:
    """Check a value of JSON, where 4096.0 is an integer too. Raises ModelError like `read_parameter`."""
    kind = _kind(name)
    match kind, value:
        case "texts", str():
            return [value]
        case "texts", list() if all(isinstance(item, str) for item in value):
            return list(value)
        case "yes or no", bool():
            return value
        case (("integer" | "number"), bool()):
            pass
        case "integer", (int() | float()) if math.isfinite(value) and value == int(value):
            return int(_in_range(name, int(value)))
        case "number", (int() | float()):
            return _in_range(name, float(value))
    raise _invalid(name, value, kind)


def _kind(name: str) -> _Kind:
    if name in _KNOWN:
        return _KNOWN[name][0]
    fix = alternatives(name, _KNOWN)
    raise ModelError(Message("unknown parameter {name!r}; {fix}", name=name[:80], fix=fix))


def _in_range(name: str, value: float) -> float:
    _, least, most = _KNOWN[name]
    if not (math.isfinite(value) and least <= value <= most):
        raise _invalid(name, value, _KNOWN[name][0])
    return value


def _invalid(name: str, value: object, kind: _Kind) -> ModelError:
    _, least, most = _KNOWN[name]
    bounds = f" from {least:g}" * math.isfinite(least) + f" to {most:g}" * math.isfinite(most)
    write = {"yes or no": "true or false", "texts": "a text"}.get(kind, f"{kind}{bounds}")
    return ModelError(
        "parameter {name} = {value!r} does not fit; write {wanted}", name=name, value=str(value)[:80], wanted=write
    )
