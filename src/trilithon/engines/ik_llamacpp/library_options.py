"""How the server over the library loads its model: its `--options`, written by the engine and read by the child."""

import json
from dataclasses import asdict, dataclass

__all__ = ["LibraryOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryOptions:
    """`batch` is the number of prompt tokens between two looks at a cancellation. `switches` are the options of the
    placement that are on. `adapters` are LoRA files with their scales. `template` replaces the model's own chat
    template; None for that one."""

    context: int
    threads: int
    batch: int
    kv_type_k: str
    kv_type_v: str
    flash_attention: bool
    switches: tuple[str, ...]
    adapters: tuple[tuple[str, float], ...]
    template: str | None

    @classmethod
    def parse(cls, text: str) -> "LibraryOptions":
        return cls(**json.loads(text))

    def json(self) -> str:
        return json.dumps(asdict(self))
