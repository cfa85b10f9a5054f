"""What is tuned: the model, the workload, the placements to choose among, and the time for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilithon.errors import UserError

__all__ = ["WORKLOADS", "TuneSetup", "parse_workload"]

WORKLOADS = {"chat": (512, 128), "rag": (4096, 128), "code": (2048, 512)}
"""Tokens of the prompt, and tokens generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSetup:
    """`placements` are spelled; empty means every one that runs the model here. The time of a workload is that of a
    prompt of `prompt_tokens`, then `generated_tokens` one by one. `quality_bound` is the largest KL divergence from the
    defaults, in nats per token."""

    model: Path
    prompt_tokens: int
    generated_tokens: int
    placements: tuple[str, ...] = ()
    budget_seconds: float = 600.0
    quality_bound: float = 0.01

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"model": str(self.model)}

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> "TuneSetup":
        """A plan that the store has; what the end of a tune adds to it is left out."""
        plan = {name: value for name, value in plan.items() if name != "end"}
        return cls(**{**plan, "model": Path(plan["model"]), "placements": tuple(plan["placements"])})


def parse_workload(text: str) -> tuple[int, int]:
    """ "chat", or "512,128". Raises UserError."""
    if text in WORKLOADS:
        return WORKLOADS[text]
    prompt, comma, generated = text.partition(",")
    if not (comma and prompt.isdecimal() and generated.isdecimal() and int(prompt) and int(generated)):
        raise UserError(
            "--workload {text}: write {names}, or two numbers from 1, for example 512,128",
            text=text,
            names=", ".join(WORKLOADS),
        )
    return int(prompt), int(generated)
