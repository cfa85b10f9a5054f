"""The C interface of the RKLLM runtime (librkllmrt.so), one set of declarations for each form that it has had.

The structures are facts in binding.toml beside this module, with their sources; sizes and offsets are checked when the
module is loaded."""

import ctypes
import math
import re
from collections.abc import Iterator, Mapping
from ctypes import POINTER, c_char_p, c_int, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilithon.board.libraries import RKLLM, followed_release, stated_version
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.tables import table_beside

__all__ = ["ABIS", "STRUCTS", "Abi", "UnknownAbi", "check_defaults", "embedded_version", "find_abi", "known_versions"]

# -- enums

NORMAL, WAITING, FINISH, ERROR, OLD_HIDDEN = range(5)
"""States of a call. WAITING: the character is not complete yet. OLD_HIDDEN: 1.1.4's way to return hidden states."""

PROMPT, TOKEN, EMBED, MULTIMODAL = range(4)
GENERATE, GET_LAST_HIDDEN_LAYER, GET_LOGITS = range(3)
GO_ON, PAUSE = 0, 1
"""What a callback returns from 1.2.1 on."""

VOID_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int)
INT_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)

_TABLE = table_beside(__file__, "binding.toml")
_NAMES = ("int", "int8", "int32", "uint8", "uint32", "size_t", "float", "bool")
_TYPES: Mapping[str, Any] = {
    **{name: getattr(ctypes, f"c_{name}") for name in _NAMES},
    "char*": c_char_p,
    "void*": c_void_p,
    "callback": INT_CALLBACK,
}


def _type(text: str, structs: Mapping[str, Any]) -> Any:
    """The ctypes type of "float*", "uint8[112]", "char*" or a structure's name."""
    if text in _TYPES:
        return _TYPES[text]
    if text.endswith("*"):
        return POINTER(_type(text[:-1], structs))
    if array := re.fullmatch(r"(\w+)\[(\d+)\]", text):
        return _type(array[1], structs) * int(array[2])
    return structs[text]


def _fields(text: str, structs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for word in text.split():
        name, _, kind = word.partition(":")
        if kind:
            yield name, _type(kind, structs)
        else:
            yield from _fields(_TABLE["groups"][name], structs)


def _declared() -> Mapping[str, Any]:
    """Every structure by name. Raises ImportError where this machine lays one out differently from the runtime."""
    structs: dict[str, Any] = {}
    for name, facts in _TABLE["structs"].items():
        base = ctypes.Union if facts.get("union") else ctypes.Structure
        struct = type(name, (base,), {"_fields_": list(_fields(facts["fields"], structs))})
        offsets = {field: getattr(struct, field).offset for field in facts.get("offsets", {})}
        if ctypes.sizeof(struct) != facts["size"] or offsets != facts.get("offsets", {}):
            raise ImportError(
                f"{name} has {ctypes.sizeof(struct)} bytes and offsets {offsets}, but the runtime has {facts['size']} "
                f"and {facts.get('offsets')}: the RKLLM runtime is not made for this machine"
            )
        structs[name] = struct
    return structs


STRUCTS = _declared()
"""ctypes structures by the names in binding.toml."""


class UnknownAbi(Exception):
    """The library's interface is not known, so nothing of it may be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abi:
    """One form of the interface; the fields are those of [[abis]] in binding.toml."""

    name: str
    versions: tuple[str, ...]
    param: type[Any]
    input: type[Any]
    infer_param: type[Any]
    result: type[Any]
    callback: type[Any] = INT_CALLBACK
    callbacks_struct: type[Any] | None = None
    clear_arguments: int = 4
    has_cache_size: bool = True
    has_chat_template: bool = True
    has_logits: bool = True
    running: int = 0

    @property
    def has_sampling(self) -> bool:
        """Whether each run has its own sampling parameters and limit; before 1.3.0 they were fixed at the start."""
        return hasattr(self.infer_param, "sampling_params")

    @property
    def has_perf(self) -> bool:
        return hasattr(self.result, "perf")

    def declare(self, library: ctypes.CDLL) -> None:
        """Give the library's functions their types. Raises UnknownAbi when one is missing."""
        handle, status = c_void_p, c_int
        callback = POINTER(self.callbacks_struct) if self.callbacks_struct else self.callback
        functions: dict[str, list[Any]] = {
            "createDefaultParam": [],
            "init": [POINTER(handle), POINTER(self.param), callback],
            "load_lora": [handle, POINTER(STRUCTS["LoraAdapter"])],
            "load_prompt_cache": [handle, c_char_p],
            "release_prompt_cache": [handle],
            "destroy": [handle],
            "run": [handle, POINTER(self.input), POINTER(self.infer_param), c_void_p],
            "abort": [handle],
            "is_running": [handle],
        }
        if self.clear_arguments:
            positions = [POINTER(c_int), POINTER(c_int)]
            functions["clear_kv_cache"] = [handle, c_int, *positions][: self.clear_arguments]
        if self.has_cache_size:
            functions["get_kv_cache_size"] = [handle, POINTER(c_int)]
        if self.has_chat_template:
            functions["set_chat_template"] = [handle, c_char_p, c_char_p, c_char_p]
        for name, arguments in functions.items():
            function = getattr(library, f"rkllm_{name}", None)
            if function is None:
                raise UnknownAbi(
                    f"the library lacks a function of RKLLM {self.name}: rkllm_{name}; take another build of it"
                )
            function.argtypes = arguments
            function.restype = _with_spare(self.param) if name == "createDefaultParam" else status


def _with_spare(param: type[Any]) -> Any:
    """`param` with room behind it: a patch release may return a longer structure, and read it all in rkllm_init."""
    return type(
        "ParamWithSpare", (ctypes.Structure,), {"_fields_": [("param", param), ("spare", ctypes.c_uint8 * 4096)]}
    )


def _abi(facts: Mapping[str, Any]) -> Abi:
    values = {name: STRUCTS.get(value, value) if isinstance(value, str) else value for name, value in facts.items()}
    values["versions"] = tuple(facts["versions"])
    callback = VOID_CALLBACK if values.pop("void_callback", False) else INT_CALLBACK
    return Abi(**values, callback=callback)


ABIS = tuple(map(_abi, _TABLE["abis"]))


def known_versions() -> str:
    return ", ".join(version for abi in ABIS for version in abi.versions)


def embedded_version(path: Path) -> str:
    """The version that the library's file states, such as "1.2.1". Raises UnknownAbi when it states none, OSError when
    it cannot be read."""
    path.stat()
    version = stated_version(THIS_MACHINE, str(path.absolute()), RKLLM)
    if version is None:
        raise UnknownAbi(
            f"{path} states no RKLLM version: it is another library; take librkllmrt.so of {known_versions()}"
        )
    return version


def find_abi(version: str) -> Abi:
    """Also for a later patch release, whose defaults are to be checked. Raises UnknownAbi, naming the versions that
    are known."""
    release = followed_release(version)
    for abi in ABIS:
        if release in abi.versions:
            return abi
    raise UnknownAbi(
        f"the interface of RKLLM runtime {version} is not known here; take librkllmrt.so of {known_versions()}, "
        "or name the one that it follows with the option abi"
    )


def check_defaults(abi: Abi, library: ctypes.CDLL, version: str) -> None:
    """Whether a patch release lays its parameters out as `abi` does: a field that was added before another one would
    shift the documented defaults. Raises UnknownAbi, naming the first that is elsewhere."""
    param = library.rkllm_createDefaultParam().param
    for name, documented in _TABLE["defaults"].items():
        holder = param if hasattr(param, name) else param.extend_param
        actual = getattr(holder, name, documented)  # older releases lack some
        if not math.isclose(actual, documented, rel_tol=1e-6):
            raise UnknownAbi(
                f"RKLLM runtime {version} is not laid out like {abi.name}: its default {name} reads {actual:g}, not "
                f"{documented:g}; take librkllmrt.so of {known_versions()}, or name the one that it follows with the "
                "option abi"
            )
