"""Several campaigns as one article: everyone named, nothing mixed up, ratios to what was asked for."""

import csv
import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from trilithon.errors import UserError
from trilithon.measure.records import Campaign, Sample
from trilithon.results.article.page import Article, ArticleWishes, make_article, write_article
from trilithon.results.bundle import portable, write_bundle
from trilithon.results.formats import import_file
from trilithon.results.simulated import SIMULATED, STAND_IN

ORANGE, RADXA = "Orange Pi 5 Plus · RK3588", "Radxa Zero 3W · RK3566"
SMALL, LARGE = ("Qwen2.5 0.5B", "Q8_0"), ("Qwen3 4B", "Q4_K_M")
PAIR = ("llama.cpp/cpu", "rk-llama.cpp/npu")

Maker = Callable[..., Campaign]


def article(*campaigns: Campaign, **wishes: Any) -> Article:
    return make_article(campaigns, ArticleWishes(**wishes))


def rows(made: Article) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made.csv)))


@pytest.mark.slow  # 36 placements
def test_two_boards_three_models_six_placements(everything: list[Campaign], tmp_path: Path) -> None:
    whole = make_article(everything, ArticleWishes(by="model", language="ru"))
    paths = write_article(whole, tmp_path / "new", width=1600, svg=True)
    names = ("pp512", "tg128", "thinking-seconds", "words-per-second")
    assert {path.name for path in paths} == {
        *("article.html", "article.md", "article.csv"),
        *(f"{name}.{form}" for name in names for form in ("png", "svg")),
    }
    assert (tmp_path / "new" / "article.html").stat().st_size < 2_000_000
    assert struct.unpack(">I", (tmp_path / "new" / "pp512.png").read_bytes()[16:20]) == (1600,)
    assert len({tuple(row[name] for name in ("board", "model", "placement")) for row in rows(whole)}) == 36
    assert whole.conclusions[0].startswith("NPU: rk-llama.cpp/npu: префилл ×2,8–2,9, генерация ×0,7")
    assert whole.conclusions[-1].startswith("Qwen3 4B Q4_K_M: префилл ×0,14")
    assert "неудачных прогонов 5 из 5: segmentation fault" in whole.charts["pp512"].description
    for name in names:
        ElementTree.parse(tmp_path / "new" / f"{name}.svg")


def test_depths_become_curves_with_the_crossing_marked(made: Maker) -> None:
    campaign = made(1, ORANGE, SMALL, names=PAIR, runs=3)

    def at_depth(sample: Sample, placement: str, depth: int) -> Sample:
        """Decode slows down by a half over 8,192 tokens on the CPU, and to an eighth on the NPU."""
        slower = 1 + depth / 8192 * (1 if placement == PAIR[0] else 7)
        test = replace(sample.test, depth=depth)
        return replace(
            sample, test=test, decode_ns=round((sample.decode_ns or 0) * slower / 2 ** (placement == PAIR[1]))
        )

    runs = [
        replace(run, samples=tuple(at_depth(run.samples[1], run.placement, depth) for depth in (0, 2048, 8192)))
        for run in campaign.runs
    ]
    one = replace(campaign, runs=tuple(runs))
    two = replace(one, id=2, placements=tuple(replace(p, model=p.model | {"name": "Other"}) for p in one.placements))
    alone = article(one)
    assert list(alone.charts) == ["tg128", "tg128-depth"]
    ring = "tokens already in the context on, llama.cpp/cpu is faster than rk-llama.cpp/npu."
    drawn = ElementTree.fromstring(alone.svgs["tg128-depth"]).itertext()
    assert ring in " ".join(" ".join(drawn).split())
    assert "| tg128 | tg128 @ d2048 | tg128 @ d8192 |" in alone.markdown
    both = article(one, two, language="ru")
    assert [name for name in both.charts if "depth" in name] == ["tg128-depth-Qwen2-5-0-5B", "tg128-depth-Other"]
    assert "Генерация" in both.charts["tg128-depth-Other"].title


def test_what_differs_makes_groups_and_what_is_equal_is_left_out(made: Maker) -> None:
    boards = article(made(1, ORANGE, SMALL, names=PAIR), made(2, RADXA, SMALL, names=PAIR))
    assert boards.markdown.startswith("| Board | Placement | pp512 | tg128 | Thinking, s |")
    assert "Radxa Zero 3W: prefill ×0.24" in boards.conclusions[-1]
    models = article(made(1, ORANGE, SMALL, names=PAIR), made(2, ORANGE, LARGE, names=PAIR))
    assert models.markdown.startswith("| Model | Quantisation | Placement |")
    assert "Qwen3 4B Q4_K_M · rk-llama.cpp/npu: 3" in models.charts["pp512"].description
    alone = article(made(1, ORANGE, SMALL, names=PAIR))
    assert alone.markdown.startswith("| Placement | pp512 |")
    assert alone.conclusions == (
        "NPU: rk-llama.cpp/npu: prefill ×2.8, decode ×0.72, words per second ×0.72 of llama.cpp/cpu; answers degraded.",
    )
    assert "<summary>" in alone.html
    assert "1 runs" not in alone.html


def test_a_plus_sign_in_options_is_no_handover_and_a_server_has_a_conclusion(made: Maker) -> None:
    campaign, names = made(1, ORANGE, SMALL, names=PAIR), {PAIR[0]: PAIR[0], PAIR[1]: "http://h:1#a+b"}
    placements = tuple(replace(one, name=names[one.name]) for one in campaign.placements)
    runs = tuple(replace(run, placement=names[run.placement]) for run in campaign.runs)
    for unit, heading in (("npu", "NPU: http"), ("server", "Server: http")):
        records = (placements[0], replace(placements[1], unit=unit))
        (conclusion,) = article(replace(campaign, placements=records, runs=runs)).conclusions
        assert conclusion.startswith(heading)


def test_ratios_are_to_the_placement_or_the_group_that_is_named(made: Maker) -> None:
    campaigns = [made(1, ORANGE, SMALL, names=PAIR), made(2, RADXA, SMALL, names=PAIR)]
    by_placement = article(*campaigns, baseline="rk-llama.cpp/npu").charts["tg128"].description
    assert "Radxa Zero 3W · llama.cpp/cpu: 5.06 ×1.39" in by_placement
    by_group = article(*campaigns, baseline="Radxa Zero 3W").charts["tg128"].description
    assert "Orange Pi 5 Plus · llama.cpp/cpu: 21.0 ×4.2" in by_group
    assert "Radxa Zero 3W · llama.cpp/cpu: 5.06;" in by_group
    with pytest.raises(UserError, match="--baseline vulkan: there is no such placement or group; there are llama"):
        article(*campaigns, baseline="vulkan")


def test_a_difference_within_the_spread_is_called_so(made: Maker) -> None:
    twins = made(1, ORANGE, SMALL, names=("llama.cpp/cpu", "llama.cpp@native/cpu"))
    first = [run for run in twins.runs if run.placement == "llama.cpp/cpu"]
    runs = [*first, *(replace(run, placement="llama.cpp@native/cpu") for run in first)]
    (told,) = article(replace(twins, runs=tuple(runs))).conclusions
    assert "decode ×1.00 (within the spread of runs)" in told


def test_labels(made: Maker) -> None:
    campaign = made(1, ORANGE, SMALL, names=("llama.cpp/cpu", "rk-llama.cpp/npu"))
    named = article(campaign, labels=("rk-llama.cpp/npu=NPU <b>", "Orange Pi 5 Plus=My board"), title="A $title & more")
    assert "NPU &lt;b&gt;" in named.html
    assert "NPU <b>" not in named.html
    assert "<h1>A $title &amp; more</h1>" in named.html
    assert rows(named)[1]["spec"] == "rk-llama.cpp/npu"
    assert rows(named)[1]["placement"] == "NPU <b>"
    assert "My board" in named.html
    for label, said in (("vulkan=x", "there is no vulkan; there are llama"), ("cpu", "write SPEC=TEXT")):
        with pytest.raises(UserError, match=said):
            article(campaign, labels=(label,))


def test_two_machines_of_one_name_and_two_campaigns_of_one_machine_are_told_apart(made: Maker, tmp_path: Path) -> None:
    one = made(1, ORANGE, SMALL, names=PAIR)
    emulated = replace(one, started="2026-11-29", board={**one.board, "description": f"{ORANGE} · 4 GiB · emulated"})
    bundles = []
    for number, campaign in enumerate((one, emulated)):
        write_bundle(portable([campaign]), tmp_path / str(number))
        bundles += import_file(tmp_path / str(number))
    boards = {row["board"] for row in rows(article(*bundles))}
    assert boards == {"Orange Pi 5 Plus · 16 GiB", "Orange Pi 5 Plus · 4 GiB · emulated"}
    settings = tuple(replace(record, settings={"threads": 8}) for record in one.placements)
    again = rows(article(one, replace(one, id=2, placements=settings), replace(one, id=3)))
    assert [row["placement"] for row in again[::2]] == [
        "llama.cpp/cpu (threads 4, #1)",
        "llama.cpp/cpu (threads 8)",
        "llama.cpp/cpu (threads 4, #3)",
    ]


def test_a_stand_in_is_marked_wherever_it_stands(made: Maker) -> None:
    campaign = made(1, ORANGE, SMALL, names=PAIR)
    cpu, npu = campaign.placements
    played = article(replace(campaign, placements=(cpu, replace(npu, must_match={SIMULATED: STAND_IN}))))
    assert "×2.8 · degraded · stand-in, no hardware" in played.charts["pp512"].description
    assert "these figures say nothing about it" in played.html
    assert "rk-llama.cpp/npu (stand-in, no hardware)" in played.markdown
    assert [row["simulated"] for row in rows(played)] == ["", STAND_IN]


def test_nothing_measured(made: Maker) -> None:
    with pytest.raises(UserError, match="campaigns without a measurement: 1, 2; there is nothing to draw"):
        article(*(replace(made(number, ORANGE, SMALL), runs=()) for number in (1, 2)))
