"""Reads RKLLAMA's folders of GGUF models: NAME/anything.gguf, a projector, and config.ini for llama-server.

The folder is the model's name. RKLLAMA gives [ENV] of config.ini to the environment of llama-server, and [ARGS] to its
command line; here both become settings of the model, and what has no such setting is reported."""

import configparser
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from trilithon.errors import ModelError
from trilithon.models.adopt.bundles import Bundle, bundles, with_tags
from trilithon.models.adopt.rkllama import MODELFILE, folder_name, read_dotenv, rkllama_parameters
from trilithon.models.adopt.scan_root import AdoptedModel, ScanResult, ScanRoot, created
from trilithon.models.files.file_names import quantization_of
from trilithon.models.files.quantizations import tensor_type
from trilithon.models.names import name_part
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.parameters import Parameter, read_parameter
from trilithon.tables import table_beside

__all__ = ["CONFIGURATION", "adopt_gguf_folder"]

CONFIGURATION = "config.ini"
_MOST_BYTES = 1 << 20
_TABLE = table_beside(__file__, "rkllama.toml")
_NPU_VARIABLE = re.compile(r"RKNPU_[A-Z0-9_]+")
_FLASH = dict.fromkeys(("", "on", "1", "true", "yes"), "on") | dict.fromkeys(("off", "0", "false", "no"), "off")


@dataclass(slots=True)
class _Settings:
    """What config.ini says: parameters of the model, options of its placement, and names of files in the folder.
    `problems` are key and reason of what is left out."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    model: str = ""
    projector: str | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)


def adopt_gguf_folder(scan_root: ScanRoot, files: Sequence[ScanResult]) -> Iterator[AdoptedModel]:
    """The models of one folder: usually one, of the folder's name; of several each has a tag of its own."""
    models = list(bundles(scan_root, files))
    if not models:
        return
    folder = models[0].first.path.parent
    settings = _settings(scan_root, next((file for file in files if file.path.name == CONFIGURATION), None))
    dotenv = _dotenv(scan_root, next((file for file in files if file.path.name == MODELFILE), None))
    named = {PurePath(text).name for text in (settings.model, dotenv.get("FROM", "")) if text}
    models = [bundle for bundle in models if bundle.first.path.name in named] or models
    for bundle in with_tags(models, of_one_repository=True) if len(models) > 1 else models:
        name = folder_name(folder.name)
        manifest = Manifest(
            name=replace(name, tag=name_part(bundle.tag)) if len(models) > 1 else name,
            files=tuple(_files(scan_root, bundle, settings, folder.name)),
            source=f"RKLLAMA's folder {folder}",
            created=created(bundle.first),
            parameters=rkllama_parameters(scan_root, folder / MODELFILE, dotenv) | settings.parameters,
            placement_options=settings.options,
            system=dotenv.get("SYSTEM", ""),
        )
        place = bundle.first.path if len(models) > 1 else folder
        yield AdoptedModel(manifest=manifest, source=scan_root.source, place=place)


def _files(scan_root: ScanRoot, bundle: Bundle, settings: _Settings, folder: str) -> Iterator[StoredFile]:
    """The files of the model, of several projectors the one that config.ini names."""
    projectors = {file.name for file in bundle.files if file.role == "projector"}
    wanted = settings.projector
    if wanted and wanted not in projectors:
        configuration = bundle.first.path.with_name(CONFIGURATION)
        scan_root.skip(configuration, f"is used without mmproj: {wanted[:80]!r} is no projector in its folder")
        wanted = None
    for file in bundle.files:
        if file.role == "weights" and not file.quantization:
            yield replace(file, quantization=quantization_of(folder, "gguf"))
        elif file.role != "projector" or wanted is None or file.name == wanted:
            yield file


def _dotenv(scan_root: ScanRoot, modelfile: ScanResult | None) -> Mapping[str, str]:
    return read_dotenv((scan_root.read(modelfile, _MOST_BYTES) or b"").decode(errors="replace")) if modelfile else {}


def _settings(scan_root: ScanRoot, file: ScanResult | None) -> _Settings:
    """Never fails: what cannot be used is reported."""
    settings = _Settings()
    if file is None:
        return settings
    text = (scan_root.read(file, _MOST_BYTES) or b"").decode("utf-8-sig", errors="replace")
    parser = configparser.RawConfigParser(
        allow_no_value=True,
        strict=False,
        delimiters=("=",),
        inline_comment_prefixes=("#", ";"),
        default_section="\0",
        empty_lines_in_values=False,
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign] # variables of the environment have a case
    try:
        parser.read_string(text)
    except configparser.Error as error:
        line = str(getattr(error, "lineno", "") or "").strip()
        where = f"line {line} is" if line else "its lines are"
        scan_root.skip(file.path, f"is not used: {where} not NAME = VALUE below [ENV] or [ARGS]; correct it")
        return settings
    for section in parser.sections():
        for key, value in parser.items(section):
            _read(settings, section.strip().upper(), key, _plain(value))
    for key, reason in settings.problems:
        scan_root.skip(file.path, f"is used without {key[:80]}: {reason}")
    return settings


def _plain(value: str | None) -> str:
    """Without quotes around it."""
    text = (value or "").strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _read(settings: _Settings, section: str, key: str, value: str) -> None:
    try:
        if section == "ENV":
            _read_variable(settings, key.strip().upper(), value)
        elif section == "ARGS":
            _read_argument(settings, key.strip().lstrip("-").lower().replace("_", "-"), value)
        else:
            raise ModelError("[{section}] is neither [ENV] nor [ARGS]", section=section[:40])
    except ModelError as error:
        settings.problems.append((key, str(error)))


def _read_variable(settings: _Settings, name: str, value: str) -> None:
    if name in _TABLE["own"]["environment"]:
        return
    if not _NPU_VARIABLE.fullmatch(name):
        raise ModelError("Trilithon has no setting for this variable")
    joined = "+".join(part.strip() for part in value.split(","))
    if not value or not joined.isprintable() or any(char.isspace() for char in joined):
        raise ModelError("{value!r} does not fit; write a value", value=value[:40])
    option = _TABLE["environment"].get(name)
    if option is None and "," in value:
        raise ModelError("a list is supported only where Trilithon has an option for it")
    settings.options[option or name] = joined


def _read_argument(settings: _Settings, name: str, value: str) -> None:
    if name in _TABLE["own"]["arguments"]:
        return
    if name in ("m", "model"):
        settings.model = value
    elif name in ("mm", "mmproj"):
        settings.projector = PurePath(value).name
    elif name == "no-mmproj":
        settings.projector = ""
    elif name in _TABLE["parameters"]:
        parameter = _TABLE["parameters"][name]
        settings.parameters[parameter] = read_parameter(parameter, value)
    elif name in _TABLE["switches"]:
        _set_switch(settings, name, value)
    else:
        option, text = _option(name, value)
        settings.options[option] = text


def _option(name: str, value: str) -> tuple[str, str]:
    """The option of a placement, and its value. Raises ModelError."""
    if name in _TABLE["numbers"]:
        if not (value.isascii() and value.isdecimal() and 0 < len(value) < 10 and int(value)):
            raise ModelError("{value!r} does not fit; write a number from 1", value=value[:40])
        return _TABLE["numbers"][name], str(int(value))
    if name in _TABLE["types"]:
        return _TABLE["types"][name], _kv_type(value)
    if name in ("fa", "flash-attn"):
        return "fa", "auto" if value.lower() == "auto" else _switch(value)
    raise ModelError("Trilithon has no setting for this argument")


def _kv_type(text: str) -> str:
    try:
        return tensor_type(text.upper()).name.lower()
    except KeyError:
        raise ModelError("{text!r} is no KV type; write for example f16, q8_0 or q4_0", text=text[:40]) from None


def _switch(text: str) -> str:
    if text.lower() not in _FLASH:
        raise ModelError("{text!r} does not fit; write on or off", text=text[:40])
    return _FLASH[text.lower()]


def _set_switch(settings: _Settings, name: str, value: str) -> None:
    """An option without a value is on; one that is "off" says the opposite of its name."""
    opposite = name.removeprefix("no-") if name.startswith("no-") else f"no-{name}"
    target, meaning = _TABLE["switches"][name if _switch(value) == "on" else opposite]
    if isinstance(meaning, bool):
        settings.parameters[target] = meaning
    else:
        settings.options[target] = meaning
