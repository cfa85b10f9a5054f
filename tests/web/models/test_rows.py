"""What a row says: facts from the header, what would run it, how fast it was, and its state."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from russian import english_in

from trilithon.board.snapshot import read_board
from trilithon.models.fetch.pull import PullStep
from trilithon.models.fetch.transfer_rate import TransferProgress
from trilithon.results.fingerprints import StaleFact, fingerprint_of
from trilithon.results.plans import Plan, keep_plan
from trilithon.results.speeds import Speeds
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.catalog.pulls import PullState
from trilithon.settings import Configuration
from trilithon.web.models.acts import possible
from trilithon.web.models.details import read_details
from trilithon.web.models.facts import Facts, machine_of, parameters_text, read_facts
from trilithon.web.models.library import ModelListRow, read_library
from trilithon.web.models.live import Live, ShownModel
from trilithon.web.models.plan_view import changes_text, origin_text
from trilithon.web.models.progress import progress_of
from trilithon.web.models.row_view import estimate_words, facts_words, marks, speed_words, state_words
from trilithon.web.texts import LANGUAGES, texts_for

TEXT = texts_for("en")
FAST = "scripted/cpu:prefill=50000"


@pytest.fixture
def small(configuration: Configuration, keep: Callable[..., str]) -> ModelListRow:
    keep("small:f16", synthetic=True, parameters={"num_ctx": 512})
    (row,) = read_library(Catalog(configuration, read_board())).rows
    return row


def loaded(**changes: object) -> ShownModel:
    values = {
        "key": "m:1",
        "name": "m:1",
        "placement": "llama.cpp/cpu",
        "context": 4096,
        "state": "ready",
        "size_bytes": 3 << 30,
        "requests": 0,
        "waiting": 0,
        "expires_in_seconds": 300.0,
    }
    return ShownModel(**(values | changes))  # type: ignore[arg-type]


def live(*models: ShownModel, pinned: tuple[str, ...] = (), trouble: str = "") -> Live:
    troubles = (("m:1", trouble),) if trouble else ()
    return Live(loaded=models, pinned=frozenset(pinned), troubles=troubles, budget_bytes=8 << 30)


def test_the_header_tells_what_it_is(configuration: Configuration, small: ModelListRow) -> None:
    facts = read_facts(small.entry, Catalog(configuration, read_board(), placement=FAST))
    assert (facts.placement, facts.context, facts.context_train, facts.can) == (FAST, 512, 2048, ("base",))
    words = facts_words(small, facts, TEXT)
    assert words.endswith("parameters · F16 · 333.5 KiB · context 512 of 2048")
    assert facts_words(small, None, TEXT) == "F16 · 333.5 KiB"
    assert marks(small, TEXT) == ["synthetic: random weights"]
    assert speed_words(facts, TEXT) == "speed not measured yet"


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_estimate_is_said_where_it_has_a_basis(
    configuration: Configuration, small: ModelListRow, language: str
) -> None:
    text, shelf = texts_for(language), Catalog(configuration, replace(read_board(), chip="RK3588"), placement=FAST)
    machine = machine_of(shelf)
    assert machine is not None and machine.shift == {}
    assert estimate_words(read_facts(small.entry, shelf, machine), text) == ""  # too small to say anything of
    (file,) = small.entry.manifest.files
    manifest = replace(small.entry.manifest, files=(replace(file, size_bytes=3 << 30),))  # 1.6 billion weights
    facts = read_facts(replace(small.entry, manifest=manifest), shelf, replace(machine, room=1 << 30))
    words = estimate_words(facts, text)
    assert facts.estimate is not None and facts.fits is False
    assert english_in(words) == set() if language == "ru" else words.endswith("GiB, which does not fit")
    assert machine_of(Catalog(configuration, replace(read_board(), chip="Intel N97"), placement=FAST)) is None


def test_a_plan_is_named_as_what_it_is(configuration: Configuration, small: ModelListRow) -> None:
    board, digest = read_board(), small.entry.manifest.files[0].digest
    plan = Plan(sha256=digest, placement=FAST, board=board.identity(), campaign=1, sentence="so it was")
    keep_plan(configuration.data, plan)
    facts = read_facts(small.entry, Catalog(configuration, board))
    assert (facts.placement, facts.is_planned) == (FAST, True)
    words = "speed not measured yet · best placement by a benchmark · the plan is stale: made by an older version"
    assert speed_words(facts, TEXT) == words
    keep_plan(configuration.data, replace(plan, by_hand=True))
    facts = read_facts(small.entry, Catalog(configuration, board))
    assert speed_words(facts, TEXT) == "speed not measured yet · placement set by hand"
    # One that cannot run is not obeyed, and can be seen and removed.
    keep_plan(configuration.data, replace(plan, placement="llama.cpp@gone/cpu"))
    facts = read_facts(small.entry, Catalog(configuration, board))
    assert not facts.is_planned
    assert "the plan is stale: the placement cannot run: placement llama.cpp@gone/cpu" in speed_words(facts, TEXT)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fact_of_a_plan_has_words(configuration: Configuration, language: str) -> None:
    facts = [*fingerprint_of(FAST, read_board(), configuration), "version", "gone"]
    text = texts_for(language)
    for fact in facts:
        said = changes_text((StaleFact(fact, "memory 528 MHz", "2.5 GiB"),), text)
        assert said == "made by an older version" or language != "en" or "GiB" in said
        assert language == "en" or english_in(said, "memory") == set(), said


@pytest.mark.parametrize(
    ("changes", "origin"),
    [({}, "campaign 3"), ({"rounds": 7}, "campaign 3, rounds: 7"), ({"by_hand": True}, "set by hand")],
)
def test_a_plan_tells_where_it_comes_from(changes: dict[str, Any], origin: str) -> None:
    plan = Plan(sha256="a", placement=FAST, board="", campaign=3, sentence="", **changes)
    assert origin_text(plan, TEXT) == origin


def test_what_cannot_run_or_be_read_is_said(configuration: Configuration, small: ModelListRow) -> None:
    facts = read_facts(small.entry, Catalog(configuration, read_board(), placement="scripted@none/cpu"))
    assert facts.placement == ""
    assert "scripted" in facts.refusal
    path = configuration.data / "models" / "blobs" / f"sha256-{small.entry.manifest.files[0].digest}"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b"X" * len(content))
    facts = read_facts(small.entry, Catalog(configuration, read_board()))
    assert facts.problem
    assert "\n" not in facts.problem
    details = read_details(small.entry, Catalog(configuration, read_board()))
    assert details.problem
    assert details.weights[0].problem


def test_details_hold_what_show_says(configuration: Configuration, small: ModelListRow) -> None:
    details = read_details(small.entry, Catalog(configuration, read_board()))
    (weights,) = details.weights
    assert list(weights.memory) == [2048]
    assert any(not verdict.refusal for verdict in weights.verdicts)
    assert [(each.role, each.name, each.is_missing) for each in details.files] == [("weights", "small.gguf", False)]
    assert ("general.architecture", "llama") in details.header
    assert "num_ctx" in details.settings
    assert "FROM" in details.modelfile


def test_speeds_are_said_with_three_digits() -> None:
    speeds = Speeds(campaign=3, prefill=171.04, decode=11.234)
    facts = Facts(speeds=speeds, is_planned=True)
    assert speed_words(facts, TEXT) == "prefill 171 tokens/s · decode 11.2 tokens/s · best placement by a benchmark"


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (live(), ("not loaded", "")),
        (live(trouble="no driver"), ("not loaded", "Last error: no driver")),
        (live(pinned=("m:1",), trouble="x"), ("not loaded, pinned", "Last error: x")),
        (live(loaded()), ("loaded", "3.0 GiB · unloads in 5:00")),
        (live(loaded(placement="x/gpu")), ("loaded", "on x/gpu · 3.0 GiB · unloads in 5:00")),
        (live(loaded(requests=1, waiting=2)), ("loaded", "3.0 GiB · requests: 1 · waiting: 2")),
        (live(loaded(expires_in_seconds=None), pinned=("m:1",)), ("loaded, pinned", "3.0 GiB")),
        (live(loaded(state="loading")), ("loading…", "3.0 GiB")),
        (live(loaded(name="other:1")), ("not loaded", "")),
    ],
)
def test_the_state_in_words(now: Live, words: tuple[str, str]) -> None:
    assert state_words("m:1", now, "llama.cpp/cpu", TEXT) == words


def test_what_can_be_done_follows_from_the_state() -> None:
    assert possible("m:1", live()) == {"load", "pin"}
    assert possible("m:1", live(loaded())) == {"unload", "pin"}
    assert possible("m:1", live(loaded(), pinned=("m:1",))) == {"unload", "unpin"}
    assert possible("m:1", live(loaded(state="leaving"))) == {"load", "pin"}
    assert possible("m:1", live(pinned=("m:1",))) == {"load", "unpin"}


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512"), (164_000, "164K"), (268_098_176, "268M"), (7_615_616_512, "7.62B")]
)
def test_parameters_as_models_are_called(count: int, text: str) -> None:
    assert parameters_text(count, TEXT) == text


def pulling(step: PullStep, **more: object) -> PullState:
    return PullState(number=1, name="m", local_name="m:latest", step=step, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_stage_of_a_pull_has_words(language: str) -> None:
    text = texts_for(language)
    for stage in ("looking", "chosen", "waiting", "fetching", "checking", "keeping"):
        assert "file" in progress_of(pulling(PullStep(stage, "file")), text).doing  # type: ignore[arg-type]
    for outcome in ("done", "failed", "stopped"):
        assert progress_of(pulling(PullStep("looking", "m"), outcome=outcome), text).doing


def test_a_pull_tells_how_far_how_fast_and_how_long() -> None:
    progress = TransferProgress(1 << 30, 4 << 30, 8 << 20, 340.0)
    found = progress_of(pulling(PullStep("fetching", "m.gguf", 1, 2, "", progress)), TEXT)
    assert found.doing == "Downloading m.gguf (1/2)"
    assert found.amount == "1.0 GiB of 4.0 GiB · 8.0 MiB/s · about 5:40 left"
    assert found.fraction == 0.25
    unknown = progress_of(pulling(PullStep("fetching", "m.gguf", 1, 1, "", TransferProgress(5, None))), TEXT)
    assert (unknown.amount, unknown.fraction) == ("5 B", None)


def test_a_failed_pull_says_why_and_a_done_one_what_there_is_to_know(tmp_path: Path) -> None:
    failed = progress_of(pulling(PullStep("looking", "m"), outcome="failed", problem="no room; free some"), TEXT)
    assert (failed.doing, failed.amount) == ("Failed", "no room; free some")
    done = progress_of(pulling(PullStep("keeping", "m"), outcome="done", notes=("its tokenizer is denied",)), TEXT)
    assert (done.doing, done.amount) == ("m:latest is ready", "its tokenizer is denied")
