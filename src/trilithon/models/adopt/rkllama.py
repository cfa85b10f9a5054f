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

__all__ = ["MODELFILE", "adopt_rkllama", "folder_name", "read_dotenv", "rkllama_parameters"]

MODELFILE = "Modelfile"
_MOST_BYTES = 1 << 20
_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*(.*)")
_QUOTES = ('"""', "'''", '"', "'")
# A quote that may end a value: nothing follows on its line but a comment. Escaped characters are passed over.
_CLOSING = {quote: re.compile(rf"\\.|{quote}(?=[ \t]*(?:#|$))", re.DOTALL) for quote in _QUOTES}
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
        name=folder_name(modelfile.path.parent.name),
        files=bundle.files,
        source=f"RKLLAMA's folder {modelfile.path.parent}" + f", from {origin}" * bool(origin),
        created=created(bundle.first),
        parameters=rkllama_parameters(scan_root, modelfile.path, settings),
        system=settings.get("SYSTEM", ""),
    )
    return AdoptedModel(manifest=manifest, source=scan_root.source, place=modelfile.path.parent)


def read_dotenv(text: str) -> Mapping[str, str]:
    """Parse KEY=value lines. Quoted values may have several lines, and quotes within: a quote ends a value where the
    next line begins another one. `$` has no meaning."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    values: dict[str, str] = {}
    endless: set[str] = set()
    at = 0
    while at < len(lines):
        match = _ASSIGNMENT.fullmatch(lines[at])
        at += 1
        if match is None:
            continue
        written = match[2]
        quote = next((quote for quote in _QUOTES if written.startswith(quote)), "")
        if quote:
            content, at = _quoted(quote, written[len(quote) :], lines, at, endless)
            values[match[1].upper()] = _unescaped(content, quote)
        else:
            values[match[1].upper()] = re.sub(r"(^|\s+)#.*", "", written).strip()
    return values


def _quoted(quote: str, first: str, lines: Sequence[str], at: int, endless: set[str]) -> tuple[str, int]:
    """The value that begins with `first` and goes on at the line `at`, and the number of the line after it. `endless`
    are quotes that close nothing up to the end of the text: such a value ends before the next one."""
    kept, closed = [first], None
    for following in range(at, len(lines) + 1):
        closing = None if quote in endless else _closing(quote, kept[-1])
        if closing is not None:
            closed = (len(kept), closing)
            if _begins_anew(lines, following):
                break
        if following == len(lines) or ((closed or quote in endless) and _ASSIGNMENT.fullmatch(lines[following])):
            break
        kept.append(lines[following])
    if closed is None and quote not in endless:
        endless.add(quote)
        return _quoted(quote, first, lines, at, endless)
    count, end = closed or (len(kept), len(kept[-1]))
    value = "\n".join([*kept[: count - 1], kept[count - 1][:end]])
    return value if closed else value.rstrip(), at + count - 1


def _closing(quote: str, line: str) -> int | None:
    """Where the first quote is that may end a value."""
    return next((match.start() for match in _CLOSING[quote].finditer(line) if match[0] == quote), None)


def _begins_anew(lines: Sequence[str], at: int) -> bool:
    """Whether nothing is left but a comment, or another value."""
    line = next((lines[number] for number in range(at, len(lines)) if lines[number].strip()), "#")
    return line.lstrip().startswith("#") or _ASSIGNMENT.fullmatch(line) is not None


def _unescaped(value: str, quote: str) -> str:
    if quote.startswith("'"):
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
    raise ModelError(
        "FROM {source!r} is none of the {models} models in its folder; correct it",
        source=source[:80],
        models=len(models),
    )


def folder_name(folder: str) -> ModelName:
    """The name of a model in a folder of RKLLAMA: that of the folder, as far as it can be one."""
    try:
        name = parse_reference(folder)
    except ModelError:
        name = parse_reference(name_part(folder))
    if isinstance(name, ModelName):
        return name
    return replace(ModelName(*ModelName.DEFAULTS[:2], "model", ModelName.DEFAULTS[2]), model=name_part(folder))


def rkllama_parameters(scan_root: ScanRoot, modelfile: Path, settings: Mapping[str, str]) -> dict[str, Parameter]:
    """The parameters that a Modelfile sets; those that do not fit are reported."""
    parameters: dict[str, Parameter] = {}
    for key, name in _PARAMETERS.items():
        if text := settings.get(key, "").strip():
            try:
                parameters[name] = read_parameter(name, text)
            except ModelError as error:
                scan_root.skip(modelfile, f"is used without {key}: {error}")
    return parameters
