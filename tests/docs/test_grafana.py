"""docs/grafana.json: what it asks for exists."""

import asyncio
import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

from trilithon.board.sensors.probes import Reading
from trilithon.serve.monitoring import scrape
from trilithon.serve.monitoring.metrics import Metrics

ROOT = Path(__file__).parents[2]


class NoModels:
    """A pool that has not been used yet."""

    loads = unloads = crashes = evictions = failed_loads = waiting = 0
    load_seconds = 0.0

    def loaded(self) -> list[scrape.LoadedFigures]:
        return []


def metric_names() -> set[str]:
    """Everything that /metrics may have, as series."""
    metrics = Metrics()
    text, _ = asyncio.run(metrics.text(NoModels()))
    names = set()
    for family in parse(text.decode()):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    kinds = [*scrape._READINGS, "energy"]
    readings = [Reading(name="x", quantity=quantity, value=1.0, unit="", source="") for quantity in kinds]  # type: ignore[arg-type]
    return names | {sample.name for family in scrape._board_metrics(readings) for sample in family.samples}


def test_every_metric_of_the_dashboard_exists() -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for expression in expressions for name in re.findall(r"trilithon_\w+", expression)}
    assert len(named) > 20
    assert named <= metric_names()
    assert re.search(r"label_values\((\w+),", board["templating"]["list"][1]["query"])[1] in metric_names()  # type: ignore[index]
