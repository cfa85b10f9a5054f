"""A campaign's progress for programs that watch it: every Step as a JSON object on a line of stderr, at the end the
campaign's number."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trilithon.bench.progress import CampaignStep

__all__ = ["number_as_json", "step_as_json"]


def step_as_json(step: CampaignStep) -> None:
    _tell(asdict(step))


def number_as_json(campaign: int) -> None:
    _tell({"campaign": campaign})


def _tell(facts: Mapping[str, Any]) -> None:
    print(json.dumps(facts), file=sys.stderr, flush=True)  # noqa: T201 - the progress itself
