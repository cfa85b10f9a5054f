"""Writes src/trilithon/estimate/fitted.json: the effects that explain the atlas, and the widths of intervals.

    .venv/bin/python scripts/fit_estimates.py

Run it after a change of the atlas, of the tables beside it or of the terms; a test fits again and compares."""

import json
import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small

import trilithon.estimate
from trilithon.estimate.fit import fit
from trilithon.estimate.predict import PHASES
from trilithon.estimate.rows import atlas
from trilithon.estimate.training import errors_left_out, interval_multiples, training_rows

FOLDER = Path(trilithon.estimate.__file__).parent
TARGET = FOLDER / "fitted.json"


def main() -> None:
    table: dict[str, object] = {}
    for phase in PHASES:
        points = training_rows(atlas(), phase)
        effects = fit([point.observation for point in points])
        table[phase] = {
            "effects": {name: round(value, 4) for name, value in effects.items()},
            "multiples": {
                group: [round(low, 3), round(high, 3)]
                for group, (low, high) in interval_multiples(errors_left_out(points)).items()
            },
        }
    TARGET.write_text(json.dumps(table, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
