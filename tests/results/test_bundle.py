"""A campaign as a file to give away: nothing lost, nothing twice, nothing private, no stand-in as hardware."""

import gzip
import json
import os
import platform
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.board.capture.redaction import Redactor
from trilithon.errors import TrilithonError, UserError
from trilithon.measure.records import (
    AnswerRecord,
    Campaign,
    Failure,
    PlacementRecord,
    QualityRecord,
    Run,
    Sample,
    SensorLog,
    SensorValues,
    Test,
)
from trilithon.results import formats
from trilithon.results.bundle import portable, without_private_parts, write_bundle, write_text
from trilithon.results.compare import summarise
from trilithon.results.formats import FORMATS, export_campaigns, import_campaigns, import_file
from trilithon.results.report.page import render_report
from trilithon.results.simulated import SIMULATED, SOFTWARE, STAND_IN, simulation
from trilithon.results.statements import remark_lines, warning_lines
from trilithon.results.store.database import Store
from trilithon.results.table import render_csv, render_markdown, render_terminal
from trilithon.results.verdict import verdict_sentence

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNTS = st.integers(0, 2**62)
FACTS = st.dictionaries(
    st.sampled_from(["threads", "cpus", "options", "note"]),
    st.recursive(st.none() | st.booleans() | COUNTS | TEXTS, lambda inner: st.lists(inner, max_size=2), max_leaves=3),
    max_size=3,
)


@st.composite
def _samples(draw: st.DrawFn) -> Sample:
    start = draw(st.integers(0, 10**12))
    return Sample(
        test=draw(
            st.builds(
                Test, kind=st.sampled_from(["pp", "tg", "pg", "question", "cold"]), prompt_tokens=COUNTS, question=TEXTS
            )
        ),
        started_ns=start,
        finished_ns=start + draw(st.integers(0, 10**12)),
        prompt_ns=draw(st.none() | COUNTS),
        decode_steps=draw(st.none() | COUNTS),
        answer_at_ns=tuple(draw(st.lists(COUNTS, max_size=2))),
        answer_text=draw(st.text(max_size=12)),
        marks=draw(st.dictionaries(TEXTS, COUNTS, max_size=2)),
    )


@st.composite
def campaigns(draw: st.DrawFn) -> Campaign:
    names = draw(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3, unique=True))
    quality = st.builds(
        QualityRecord,
        verdict=st.sampled_from(["reference", "broken"]),
        reference=TEXTS,
        divergence=st.none() | st.floats(0, allow_nan=False),
        reasons=st.lists(TEXTS, max_size=2).map(tuple),
    )
    answers = st.builds(
        AnswerRecord,
        **dict.fromkeys(("question_set", "question", "text", "expected", "answer", "thinking", "reason"), TEXTS),
        set_digest=st.just("5f2a"),
        verdict=st.sampled_from(["correct", "wrong", "unscored"]),
        tokens=COUNTS,
        seconds=st.floats(0, 1e9),
    )
    placements = tuple(
        PlacementRecord(
            name=name,
            engine=draw(TEXTS),
            build=draw(TEXTS),
            build_version=draw(TEXTS),
            unit=draw(st.sampled_from(["cpu", "gpu", "npu"])),
            model={"name": draw(TEXTS), "size_bytes": draw(st.none() | COUNTS)},
            settings=draw(FACTS),
            must_match=draw(st.dictionaries(TEXTS, TEXTS, max_size=2)),
            bandwidth_bytes_per_second=draw(st.none() | st.floats(0, 1e15)),
            quality=draw(st.none() | quality),
            answers=tuple(draw(st.lists(answers, max_size=2, unique_by=lambda answer: answer.question))),
        )
        for name in names
    )
    failures = st.builds(Failure, kind=TEXTS, message=TEXTS, last_words=st.lists(TEXTS, max_size=2).map(tuple))
    sensor = SensorValues(quantity="load", name="cpu", unit="%", source="/proc/stat", values=(1.5, None))
    runs = tuple(
        Run(
            placement=draw(st.sampled_from(names)),
            round=draw(st.integers(0, 9)),
            outcome=draw(st.sampled_from(["finished", "failed", "skipped"])),
            started_ns=5,
            finished_ns=draw(st.integers(5, 10**15)),
            samples=tuple(draw(st.lists(_samples(), max_size=2))),
            failure=draw(st.none() | failures),
            warnings=tuple(draw(st.lists(TEXTS, max_size=1))),
            remarks=tuple(draw(st.lists(TEXTS, max_size=1))),
            log=draw(st.text(max_size=30)),
            sensor_log=draw(st.sampled_from([None, SensorLog(at_ns=(1, 2), sensors=(sensor,))])),
        )
        for _ in range(draw(st.integers(0, 3)))
    )
    return Campaign(
        id=draw(st.integers(0, 99)),
        started=draw(st.sampled_from(["2026-11-20T18:42:07+01:00", ""])),
        status=draw(st.sampled_from(["running", "interrupted", "finished"])),
        source="trilithon",
        version="0.1",
        board=draw(FACTS),
        plan=draw(FACTS),
        placements=placements,
        runs=runs,
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(made=st.lists(campaigns(), min_size=1, max_size=2))
def test_export_import_export_is_the_identity(made: list[Campaign], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(portable(made), folder / "first")
    with Store.open(folder / "results.sqlite") as store:
        added = [store.add_once(campaign) for campaign in import_file(folder / "first")]
        kept = [store.campaign(number) for number in dict.fromkeys(number for number, _ in added)]
        write_bundle(portable(kept), folder / "second")
        again = [store.add_once(campaign) for campaign in import_file(folder / "second")]
        assert [is_new for _, is_new in again] == [False] * len(again)
        assert len(store.campaigns()) == sum(is_new for _, is_new in added)
    if all(is_new for _, is_new in added):
        assert (folder / "second").read_bytes() == (folder / "first").read_bytes()


def test_what_is_private_stays_here(example: Any) -> None:
    user, host = "anna-petrovna", "kitchen-nas7"
    log = (
        f"loading /srv/clients/acme/model.gguf on {host}\nhome /home/{user}/.cache\nhttp://192.168.7.20:8080 says\n"
        "http://workshop:11434/api and https://huggingface.co/x and http://127.0.0.1:9/\nfrom /usr/lib/libggml.so\n"
        "/mnt/big disk/acme models/a.gguf: token=hf_abcdefghijklmnopqrst\nhome /home/boris\n"
        "path:/srv/acme/x file:///srv/acme/y /mnt/fast/acme/f /mnt/fast2/acme/f /acme/big/mnt/fast/f\n"
        "100.100.7.20 lost; at 192.168.7.20. bind fe80::7c2f:1 [2001:db8:7c2f::1]:80 2001:db8:7c2f:0:0:0:0:1, [::1]:80"
        "\nno route to Workshop or ollama.acme.example.org; std::string at 12:34:56"
    )
    disks = (f"/home/{user}/data", "/", "/mnt/fast", "/home/boris")
    first = example.campaign.placements[0]
    named = replace(
        first,
        name="http://acme.example.org:8080",
        settings={**first.settings, "options": {"lora": "/mnt/big disk/acme models/a.gguf"}},
    )
    twin = replace(first, name="http://ollama.acme.example.org:8080")
    campaign = replace(
        example.campaign,
        plan={"model": "/srv/clients/acme/model.gguf", "placements": [named.name]},
        board={**example.campaign.board, "disks": [{"path": path} for path in disks]},
        placements=(named, twin, *example.campaign.placements[1:]),
        runs=tuple(
            replace(run, log=log, placement=named.name if run.placement == first.name else run.placement)
            for run in example.campaign.runs
        ),
    )
    redactor = Redactor(names={user, host}, home=Path(f"/home/{user}"))
    clean = without_private_parts(campaign, redactor)
    text = export_campaigns([clean], "trilithon").text
    for word in (user, host, "boris", "clients", "acme", "192.168", "100.100", "7c2f", "orkshop", "big", "hf_abc"):
        assert word not in text
    assert [placement.name for placement in clean.placements[:2]] == ["http://host-1:8080", "http://host-2:8080"]
    assert {run.placement for run in clean.runs} <= {placement.name for placement in clean.placements}
    assert "https://huggingface.co/x and http://127.0.0.1:9/\\nfrom /usr/lib/libggml.so" in text
    assert "[::1]:80\\nno route to host-4 or host-2; std::string at 12:34:56" in text
    assert clean.plan["model"] == "model.gguf"
    assert [[sample.decode_ns for sample in run.samples] for run in clean.runs] == [
        [sample.decode_ns for sample in run.samples] for run in campaign.runs
    ]
    assert without_private_parts(clean, redactor) == clean


def test_this_machines_names_are_known(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "kitchen-nas7.lan")
    monkeypatch.setenv("LOGNAME", "petrovna")
    monkeypatch.setenv("HOME", "/data/anna")
    note = "models in /data/anna/models on kitchen-nas7.lan or kitchen-nas7 by petrovna, not 'kitchen'"
    (clean,) = portable([replace(example.campaign, plan={"note": note})])
    assert clean.plan["note"] == "models in …/models on removed or removed by removed, not 'kitchen'"


@pytest.mark.parametrize("user", ["trilithon", "llama", "ollama"])
def test_a_user_of_a_service_is_no_private_name(example: Any, user: str) -> None:
    clean = without_private_parts(example.campaign, Redactor(names={user}, home=Path("/")))
    assert clean.source == "trilithon"
    assert [p.name for p in clean.placements] == [p.name for p in example.campaign.placements]


def test_the_source_is_kept(example: Any) -> None:
    imported = replace(example.campaign, source="llama-bench b9000")
    assert without_private_parts(imported, Redactor(names={"bench"}, home=Path("/"))).source == imported.source


def test_the_same_results_are_kept_once(example: Any, tmp_path: Path) -> None:
    data = Path(__file__).parent / "data"
    with Store.open(tmp_path / "results.sqlite") as store:
        here = store.add(example.campaign)
        write_bundle(portable([store.campaign(here)]), tmp_path / "bundle")
        assert store.add_once(import_file(tmp_path / "bundle")[0]) == (here, False)
        other = replace(example.campaign, started="2026-11-21T18:42:07+01:00")
        number, is_new = store.add_once(other)
        assert (is_new, store.campaigns()[-1].imported != "") == (True, True)
        store.set_status(number, "interrupted")
        assert store.last_interrupted() is None
        added = [store.add_once(import_file(data / f"llama-bench.{form}")[0]) for form in ("json", "json", "jsonl")]
        # The five captures are runs of their own, with figures of their own.
        assert [is_new for _, is_new in added] == [True, False, True]
        csv_of_json = export_campaigns(import_file(data / "llama-bench.json"), "csv").text
        assert store.add_once(import_campaigns(csv_of_json.encode(), "again.csv")[0]) == (added[0][0], False)


@pytest.mark.parametrize("kind", [STAND_IN, SOFTWARE])
def test_what_only_played_hardware_is_never_exported_as_hardware(example: Any, kind: str) -> None:
    records = (
        replace(record, must_match={SIMULATED: kind} if record.unit == "npu" else {})
        for record in example.campaign.placements
    )
    # Two runs each: an interval takes its time.
    played = replace(example.campaign, placements=tuple(records), runs=example.campaign.runs[:10])
    for form in FORMATS:
        text = export_campaigns([played], form).text
        assert kind in text
        back = import_campaigns(text.encode(), "played")
        told = {(record.unit, simulation(one, record)) for one in back for record in one.placements}
        assert {("cpu", ""), ("npu", kind)} <= told <= {("cpu", ""), ("npu", kind), ("gpu", "")}
    rows = summarise(played)
    for text in (render_csv(rows), render_markdown(rows), render_terminal(rows, width=120, colour=False)):
        assert kind in text


def test_older_results_of_stand_ins_are_recognised(example: Any) -> None:
    record = example.campaign.placements[3]
    scripted = replace(record, engine="scripted", unit="cpu", name="scripted/cpu")
    no_npu = replace(example.campaign, board={**example.campaign.board, "npu": None})
    hidden = replace(no_npu, board={**no_npu.board, "device_tree_hidden": True})
    assert simulation(example.campaign, scripted) == STAND_IN
    assert [simulation(one, record) for one in (example.campaign, no_npu, hidden)] == ["", STAND_IN, ""]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(item, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(value[path[0]], path[1:], new)
    return copy


def _deep() -> Any:
    value: Any = 1
    for _ in range(200):
        value = [value]
    return value


WRONG = [
    *(None, True, -1, 0, 10**30, 1e308, "nan", "-inf", "", "x" * 5000, "\ud83d", "\x1b[2J\0"),
    *([], {}, [None], {"a": {}}, _deep()),
]


@pytest.mark.slow  # sixty campaigns, each used in every way
def test_damaged_bundles_are_refused_in_one_line_or_do_no_harm(example: Any, tmp_path: Path) -> None:
    """Any value at any place: what is taken in can be listed, shown, drawn up and exported."""
    small = replace(example.campaign, runs=example.campaign.runs[:5])
    whole = json.loads(export_campaigns([small], "trilithon").text)
    places, dice, kept = list(_places(whole)), random.Random(19), 0
    with Store.open(tmp_path / "results.sqlite") as store:
        for _ in range(60):
            path, new = dice.choice(places), dice.choice(WRONG)
            content = json.dumps(_changed(whole, path, new)).encode()
            try:
                (number, _), *_ = [store.add_once(campaign) for campaign in import_campaigns(content, "odd")]
            except ValueError:  # no campaign in it
                continue
            except UserError as error:
                assert "\n" not in str(error), (path, new)
                continue
            kept += 1
            try:
                _use(store.campaign(number))
            except TrilithonError as error:
                assert "\n" not in str(error)
            except Exception as error:
                raise AssertionError(f"{path} = {new!r}"[:300]) from error
            assert store.campaigns()
    assert kept > 10


def _use(campaign: Campaign) -> None:
    rows = summarise(replace(campaign, runs=campaign.runs[:5]))
    for form in FORMATS:
        export_campaigns(portable([campaign]), form)
    render_terminal(rows, width=100, colour=False)
    render_report(campaign, rows, verdict_sentence(campaign), [], [])
    assert warning_lines(campaign) is not None
    assert remark_lines(campaign) is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b" " * (3 << 20), mtime=0), "holds more than 2 MiB; split it"),
        (
            gzip.compress(b'{"trilithon_results": 1, "campaigns": [' + b"[]," * 900, mtime=0),
            "more than 1,000 values; split it",
        ),
        (gzip.compress(b'{"trilithon_results": 1, "campaigns": []}', mtime=0)[:-12], "is not complete JSON"),
        (b"PK\x03\x04\x14\0\0\0", "holds no results that can be read"),
        (b"\x1f\x8b\x08\x00garbage", "holds no results that can be read"),
        (b"\x1f\x8b\x08" + bytes(7) + b"\xff\xff\xff", "is damaged"),
    ],
    ids=("spaces", "values", "half", "zip", "garbage", "damaged"),
)
def test_bombs_and_halves(content: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MOST_BYTES", 2 << 20)
    monkeypatch.setattr(formats, "_MOST_VALUES", 1000)
    with pytest.raises(UserError, match=said) as caught:
        import_campaigns(content, "odd")
    assert "\n" not in str(caught.value)


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    """As root, `-o /dev/stdout` would otherwise replace the device for every program."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text("text", pipe)
        assert (os.read(reader, 100), pipe.is_fifo()) == (b"text", True)
    finally:
        os.close(reader)
