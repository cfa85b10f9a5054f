"""OpenAI's embeddings: what is asked, and the engines' vectors in the form that was asked for. Pure functions."""

import base64
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from sys import byteorder
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from trilithon.errors import EngineError
from trilithon.serve.openai.bodies import LONGEST_NAME
from trilithon.serve.openai.extensions import RESIDENCE, Residence
from trilithon.serve.validation import Rules, ValidatedBody, require_few, require_short, validate, wrong

__all__ = ["EmbeddingBody", "embedding_body", "shaped"]

_MOST_INPUTS: Final = 2048


class EmbeddingBody(Residence):
    """An empty `model` is the only one there is. `dimensions` takes the first so many of each vector, at length 1
    again, as models trained for it allow."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=LONGEST_NAME)] = ""
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None


_RULES = Rules(passed=frozenset({"input"}), neutral={})
_READ_HERE = frozenset({"model", "encoding_format", "dimensions"}) | RESIDENCE


def embedding_body(fields: Mapping[str, Any]) -> ValidatedBody:
    """What the engine gets. Raises Problem for what is no input."""
    admitted = validate({name: value for name, value in fields.items() if name not in _READ_HERE}, _RULES)
    given = fields["input"]
    inputs = given if isinstance(given, list) else [given]
    if _is_tokens(inputs):
        return admitted
    require_few(inputs, _MOST_INPUTS, "input")
    if not inputs or any(item in ("", []) for item in inputs):
        raise wrong("input", "input is empty; send a text")
    if not all(isinstance(item, str) or _is_tokens(item) for item in inputs):
        raise wrong("input", "input must be a string, a list of token ids, or a list of either")
    for item in inputs:
        require_short(item if isinstance(item, str) else "", "input")
    return admitted


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def shaped(content: bytes, *, model: str, dimensions: int | None, base64_wanted: bool) -> dict[str, Any]:
    """The engine's answer as it was asked for. Raises Problem for more dimensions than there are, and Refused for
    an answer of another form."""
    try:
        answer = json.loads(content)
        vectors = [[float(number) for number in entry["embedding"]] for entry in answer["data"]]
        usage = {name: int(answer["usage"][name]) for name in ("prompt_tokens", "total_tokens")}
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError("the engine returned no embeddings", status=502, cause="bad answer") from error
    data = [
        {"object": "embedding", "index": at, "embedding": _encoded(_cut(vector, dimensions), base64_wanted)}
        for at, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _cut(vector: Sequence[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions == len(vector):
        return list(vector)
    if dimensions > len(vector):
        raise wrong("dimensions", f"this model's embeddings have {len(vector)} dimensions; request at most that many")
    cut = vector[:dimensions]
    length = math.hypot(*cut)
    return [number / length for number in cut] if length else list(cut)


def _encoded(vector: list[float], base64_wanted: bool) -> list[float] | str:
    """Little-endian 32-bit floats, as OpenAI's client unpacks them."""
    if not base64_wanted:
        return vector
    packed = array("f", vector)
    if byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")
