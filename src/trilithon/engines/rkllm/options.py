"""How the RKLLM server loads its model: its `--options`, written by the engine and read by the child."""

import json
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.packages import install_line
from trilithon.suggestions import alternatives

__all__ = ["CONTEXT_STEP", "LoadOptions", "install_rknnlite"]

# From messages of the runtime 1.2.x: the kernel has 16 domains, and a context is a multiple of 32.
_DOMAINS = 16
CONTEXT_STEP = 32
# The newest Python that rknn-toolkit-lite2 2.5.0 has a wheel for.
_NEWEST_PYTHON = (3, 12)


def install_rknnlite(python: tuple[int, int] = sys.version_info[:2]) -> str:
    """How to get the package that runs vision encoders, on this version of Python."""
    command = f"run: {install_line('rknn-toolkit-lite2')}"
    if python <= _NEWEST_PYTHON:
        return command
    newest, this = (".".join(map(str, version)) for version in (_NEWEST_PYTHON, python))
    return f"{command} in an environment of Python {newest}, since its release 2.5.0 has nothing for {this}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Settings for loading the model. For empty values and None, the runtime decides.

    `cpu_mask` are the CPUs that the runtime uses (bit n for CPU n); `domain` is the IOMMU domain, which addresses 4 GB;
    `embed_flash` leaves the word embeddings on the disk; `keep_tokens` first tokens are kept when the context
    overflows. `encoder` is a vision encoder (.rknn), `chip` its platform, `lora` an adapter file, `slots` the folder
    for saved prompt caches. `thinking` is the default of requests. `abi` is the release whose interface to assume for
    a runtime of an unknown version."""

    context: int = 4096
    keep_tokens: int = -1
    cpu_mask: int | None = None
    domain: int | None = None
    embed_flash: bool | None = None
    encoder: str = ""
    chip: str = ""
    lora: str = ""
    lora_scale: float = 1.0
    slots: str = ""
    thinking: bool = True
    abi: str = ""

    @classmethod
    def parse(cls, text: str) -> "LoadOptions":
        """Raises UserError, naming the option, for invalid JSON, an unknown name or an invalid value."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"--options is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UserError('--options must be a JSON object, for example {"context": 4096}')
        known = get_type_hints(cls)
        for name, value in values.items():
            if name not in known:
                raise UserError(Message("unknown option {name}; {fix}", name=name, fix=alternatives(name, known)))
            if not _fits(value, known[name]):
                raise UserError(f"option {name} = {value!r} is not valid; it must be {_type_name(known[name])}")
        options = cls(**values)
        options._check()
        return options

    def json(self) -> str:
        """As `parse` reads it, without default values."""
        defaults = {field.name: field.default for field in fields(self)}
        return json.dumps({name: value for name, value in asdict(self).items() if value != defaults[name]})

    def _check(self) -> None:
        if self.context < CONTEXT_STEP:
            raise UserError(f"option context = {self.context} is not valid; it must be {CONTEXT_STEP} or more")
        if self.domain is not None and not 0 <= self.domain < _DOMAINS:
            raise UserError(f"option domain = {self.domain} is not valid; it must be from 0 to {_DOMAINS - 1}")
        if self.cpu_mask is not None and not 0 < self.cpu_mask < 1 << 32:
            raise UserError(f"option cpu_mask = {self.cpu_mask} is not valid; it must name CPUs 0 to 31")


def _fits(value: Any, kind: Any) -> bool:
    if value is None:
        return isinstance(None, kind)
    if isinstance(value, bool):
        return kind in (bool, bool | None)
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _type_name(kind: Any) -> str:
    return {int: "a whole number", int | None: "a whole number", float: "a number", str: "text"}.get(
        kind, "true or false"
    )
