"""How the RKLLM server loads its model: the words of its `--options`, written by the engine and read by the child."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from trilithon.errors import UserError

__all__ = ["CONTEXT_STEP", "LoadOptions"]

# The runtime's own (messages of 1.2.x): a domain is one of the kernel's 16, contexts come in steps of 32.
_DOMAINS = 16
CONTEXT_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Everything that is settled when the model is loaded. What is empty or None is the runtime's own choice.

    `cpu_mask` are the CPUs that the runtime computes on (bit n for CPU n); `domain` is the IOMMU domain, of which each
    addresses 4 GB; `embed_flash` leaves the word embeddings on the disk; `keep_tokens` stay when the context overflows.
    `encoder` is a vision encoder (.rknn), `chip` what it runs on, `lora` an adapter file, `slots` the folder for saved
    prompt caches. `thinking` is what a request without a word on it gets. `abi` names the interface to assume for a
    runtime whose version is not known."""

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
        """Raises UserError, naming the option, for what is no JSON, an unknown word or a value that does not fit."""
        try:
            given = json.loads(text)
        except ValueError as error:
            raise UserError(f"--options is not JSON: {error}") from error
        if not isinstance(given, dict):
            raise UserError('--options must be a JSON object, for example {"context": 4096}')
        known = get_type_hints(cls)
        for name, value in given.items():
            if name not in known:
                raise UserError(f"unknown option {name}; known are {', '.join(known)}")
            if not _fits(value, known[name]):
                raise UserError(f"option {name} = {value!r} does not fit; it must be {_word(known[name])}")
        options = cls(**given)
        options._check()
        return options

    def json(self) -> str:
        """As `parse` takes it; what is as by default is left out."""
        defaults = {field.name: field.default for field in fields(self)}
        return json.dumps({name: value for name, value in asdict(self).items() if value != defaults[name]})

    def _check(self) -> None:
        if self.context < CONTEXT_STEP:
            raise UserError(f"option context = {self.context} does not fit; it must be {CONTEXT_STEP} or more")
        if self.domain is not None and not 0 <= self.domain < _DOMAINS:
            raise UserError(f"option domain = {self.domain} does not fit; it must be from 0 to {_DOMAINS - 1}")
        if self.cpu_mask is not None and not 0 < self.cpu_mask < 1 << 32:
            raise UserError(f"option cpu_mask = {self.cpu_mask} does not fit; it must name CPUs 0 to 31")


def _fits(value: Any, kind: Any) -> bool:
    if value is None:
        return isinstance(None, kind)
    if isinstance(value, bool):
        return kind in (bool, bool | None)
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _word(kind: Any) -> str:
    return {int: "a whole number", int | None: "a whole number", float: "a number", str: "text"}.get(
        kind, "true or false"
    )
