"""Reads a folder of RKLLAMA: a Modelfile in the format of dotenv, an .rkllm file, its encoder and its tokenizer.

RKLLAMA loads the Modelfile into the environment of its server. Here nothing in it is expanded or run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.adopt.bundles import Bundle, bundles
from trilithon.models.adopt.scan_root import AdoptedModel, ScanResult, ScanRoot, created
from trilithon.models.names import ModelName, name_part, parse_reference
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.parameters import Parameter, read_parameter

__all__ = ["MODELFILE", "adopt_rkllama", "read_dotenv"]

MODELFILE = "Modelfile"
_MOST_BYTES = 1 << 20
_ASSIGNMENT = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\n]*)""",
    re.MULTILINE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
# RKLLAMA's parameters → Ollama's.
_SAME = (
    "frequency_penalty",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "num_ctx",
    "presence_penalty",
    "repeat_penalty",
)
_PARAMETERS = {name.upper(): name for name in (*_SAME, "temperature", "top_k", "top_p")} | {
    "ENABLE_THINKING": "think",
    "MAX_NEW_TOKENS": "num_predict",
}


def adopt_rkllama(
    scan_root: ScanRoot, modelfile: ScanResult, files: Sequence[ScanResult], below: Sequence[ScanResult]
) -> AdoptedModel:
    """The model that the Modelfile describes. Raises ModelError, with a reason for `Skipped`."""
    settings = read_dotenv((scan_root.read(modelfile, _MOST_BYTES) or b"").decode(errors="replace"))
    bundle = _described(list(bundles(scan_root, files, below)), settings.get("FROM", ""))
    origin = settings.get("HUGGINGFACE_PATH", "")
    manifest = Manifest(
        name=_name(modelfile.path.parent.name),
        files=bundle.files,
        source=f"RKLLAMA's folder {modelfile.path.parent}" + f", from {origin}" * bool(origin),
        created=created(bundle.first),
        parameters=_parameters(scan_root, modelfile, settings),
        system=settings.get("SYSTEM", ""),
    )
    return AdoptedModel(manifest=manifest, source=scan_root.source, place=modelfile.path.parent)


def read_dotenv(text: str) -> Mapping[str, str]:
    """Parse KEY=value lines. Quoted values may have several lines; `$` has no meaning."""
    return {match[1].upper(): _value(match[2]) for match in _ASSIGNMENT.finditer(text.replace("\r\n", "\n"))}


def _value(written: str) -> str:
    quote = written[:1]
    if quote in ("'", '"') and len(written) > 1 and written.endswith(quote):
        return _unescaped(written[1:-1], quote)
    return re.sub(r"(^|\s+)#.*", "", written).strip()


def _unescaped(value: str, quote: str) -> str:
    if quote == "'":
        return value.replace("\\'", "'")
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), value)


def _described(models: Sequence[Bundle], source: str) -> Bundle:
    """The model whose file FROM names. Only the file name counts, not a path."""
    name = Path(source).name
    for bundle in models:
        if bundle.first.path.name == name:
            return bundle
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelError("has no .rkllm file in its folder; download the model again")
    raise ModelError(f"FROM {source[:80]!r} is none of the {len(models)} models in its folder; correct it")


def _name(folder: str) -> ModelName:
    try:
        name = parse_reference(folder)
    except ModelError:
        name = parse_reference(name_part(folder))
    if isinstance(name, ModelName):
        return name
    return replace(ModelName(*ModelName.DEFAULTS[:2], "model", ModelName.DEFAULTS[2]), model=name_part(folder))


def _parameters(scan_root: ScanRoot, modelfile: ScanResult, settings: Mapping[str, str]) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for key, name in _PARAMETERS.items():
        if text := settings.get(key, "").strip():
            try:
                parameters[name] = read_parameter(name, text)
            except ModelError as error:
                scan_root.skip(modelfile.path, f"is used without {key}: {error}")
    return parameters
