"""The results database: nothing stored is lost or changed, and whatever is wrong with the file is said in one line."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.errors import StoreError
from trilithon.measure.records import AnswerRecord, Campaign, Failure, PlacementRecord, QualityRecord, Run, Sample, Test
from trilithon.results.store.database import Store
from trilithon.results.store.schema import MIGRATIONS, NEWEST
from trilithon.results.store.writer import this_process

DATA = Path(__file__).parents[1] / "data"
NOBODY = 65534

PP512 = Test(kind="pp", prompt_tokens=512)
QUESTION = Test(kind="question", question="расскажи про 石头")
QUALITY = QualityRecord(
    verdict="broken",
    reference="scripted/cpu",
    positions=32,
    divergence=9.1,
    divergence_decode=0.1 + 0.2,
    agreement=1 / 3,
    perplexity=float("inf"),
    reasons=("looping", "not text"),
)
REPLY = AnswerRecord(
    question_set="mine",
    set_digest="5f2a",
    question="capital",
    text="Which?",
    verdict="wrong",
    kind="fact",
    language="ru",
    expected="Осло",
    answer="half \ud83d",
    thinking="hm",
    reason="without Осло",
    stop_reason="stop",
    tokens=7,
    seconds=0.25,
)
PLACEMENT = PlacementRecord(
    name="scripted/cpu",
    engine="scripted",
    build="wheel",
    build_version="1.0",
    unit="cpu",
    model={"name": "tiny", "size_bytes": 123, "parameters": None},
    settings={"threads": 2, "cpus": [0, 1], "options": []},
    must_match={"board": "PC", "kernel": "6.1"},
    bandwidth_bytes_per_second=1.5e10 / 7,
)
PREFILL = Sample(test=PP512, started_ns=2**62, finished_ns=2**62 + 7, prompt_evaluated=512, prompt_ns=7)
ANSWER = Sample(
    test=QUESTION,
    started_ns=1,
    finished_ns=99,
    thinking_at_ns=(2, 3),
    answer_at_ns=(4, 50, 98),
    thinking_text="hm\x00m",
    answer_text="half a pair: \ud83d",
    stop_reason="stop",
    marks={"load_cold_ns": 5},
)
DIED = Failure(kind="died", message="died: SIGSEGV", cause="segmentation fault", advice="", last_words=("a", "б"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "results.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def start(store: Store) -> int:
    return store.start_campaign(
        started="2026-11-22T10:00:00+03:00", source="trilithon", version="0.1.0", board={"cpus": 2}, plan={"r": [1]}
    )


def fill(store: Store) -> int:
    """A campaign with one run of each outcome."""
    number = start(store)
    store.add_placement(number, PLACEMENT)
    store.set_quality(number, PLACEMENT.name, QUALITY)
    store.add_answer(number, PLACEMENT.name, replace(REPLY, answer="before"))
    store.add_answer(number, PLACEMENT.name, REPLY)
    finished = store.start_run(number, PLACEMENT.name, 0, 10)
    store.add_sample(finished, PREFILL)
    store.add_sample(finished, ANSWER)
    store.finish_run(finished, "finished", 100, warnings=("throttled",), remarks=("runs with less",), log="load: ok\n")
    failed = store.start_run(number, PLACEMENT.name, 1, 110)
    store.finish_run(failed, "failed", 120, failure=DIED, log="bye \udcff")
    return number


def filled(number: int) -> Campaign:
    runs = (
        Run(
            placement=PLACEMENT.name,
            round=0,
            outcome="finished",
            started_ns=10,
            finished_ns=100,
            samples=(PREFILL, ANSWER),
            warnings=("throttled",),
            remarks=("runs with less",),
            log="load: ok\n",
        ),
        Run(
            placement=PLACEMENT.name,
            round=1,
            outcome="failed",
            started_ns=110,
            finished_ns=120,
            failure=DIED,
            log="bye \udcff",
        ),
    )
    return Campaign(
        id=number,
        started="2026-11-22T10:00:00+03:00",
        status="running",
        source="trilithon",
        version="0.1.0",
        board={"cpus": 2},
        plan={"r": [1]},
        placements=(replace(PLACEMENT, quality=QUALITY, answers=(REPLY,)),),
        runs=runs,
    )


def test_a_campaign_comes_back_as_it_was(store: Store, path: Path) -> None:
    number = fill(store)
    assert store.campaign(number) == filled(number)
    store.set_status(number, "finished")
    store.close()
    with Store.open(path) as again:
        assert again.campaign(number) == replace(filled(number), status="finished")


def test_a_whole_campaign_is_added_at_once(store: Store) -> None:
    original = filled(fill(store))
    number = store.add(replace(original, status="finished"))
    assert number != original.id
    assert store.campaign(number) == replace(original, id=number, status="finished")


def test_adding_a_broken_campaign_leaves_nothing(store: Store) -> None:
    run = Run(placement="nowhere", round=0, outcome="finished", started_ns=0, finished_ns=1)
    with pytest.raises(StoreError, match="no placement nowhere"):
        store.add(replace(filled(7), runs=(run,)))
    assert store.campaigns() == []


integers = st.integers(min_value=-(2**63), max_value=2**63 - 1)
texts = st.text(st.characters(), max_size=40)  # halves of surrogate pairs too
moments = st.lists(integers, max_size=5).map(tuple)
samples = st.builds(
    Sample,
    test=st.builds(
        Test,
        kind=st.sampled_from(["pp", "tg", "pg", "question", "cold"]),
        prompt_tokens=integers,
        generated_tokens=integers,
        depth=integers,
        question=texts,
    ),
    started_ns=integers,
    finished_ns=integers,
    prompt_evaluated=st.none() | integers,
    prompt_cached=st.none() | integers,
    prompt_ns=st.none() | integers,
    decode_steps=st.none() | integers,
    decode_ns=st.none() | integers,
    thinking_at_ns=moments,
    answer_at_ns=moments,
    thinking_text=texts,
    answer_text=texts,
    stop_reason=texts,
    marks=st.dictionaries(texts, integers, max_size=3),
)


@given(batch=st.lists(samples, max_size=4), log=texts, warnings=st.lists(texts, max_size=2))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_sample_comes_back_exactly(store: Store, batch: list[Sample], log: str, warnings: list[str]) -> None:
    number = start(store)
    store.add_placement(number, PLACEMENT)
    run = store.start_run(number, PLACEMENT.name, 0, 0)
    for sample in batch:
        store.add_sample(run, sample)
    store.finish_run(run, "finished", 1, warnings=warnings, log=log)
    (loaded,) = store.campaign(number).runs
    assert loaded.samples == tuple(batch)
    assert (loaded.log, loaded.warnings) == (log, tuple(warnings))


def test_a_long_log_keeps_its_end(store: Store) -> None:
    number = start(store)
    store.add_placement(number, PLACEMENT)
    run = store.start_run(number, PLACEMENT.name, 0, 0)
    store.finish_run(run, "finished", 1, log="x" + "б" * 200_000 + "the end")
    (loaded,) = store.campaign(number).runs
    assert loaded.log.endswith("ббthe end")
    assert set(loaded.log[:-7]) == {"б"}
    assert 256 * 1024 - 2 < len(loaded.log.encode()) <= 256 * 1024


def test_summaries(store: Store) -> None:
    first, second = fill(store), start(store)
    one, two = store.campaigns()
    assert (one.id, one.models, one.placements, one.runs) == (first, ("tiny",), ("scripted/cpu",), 2)
    assert one.tests == ("pp512", "question")
    assert (two.id, two.tests, two.runs, two.status) == (second, (), 0, "running")


def test_removing_takes_everything_with_it(store: Store, path: Path) -> None:
    number, other = fill(store), fill(store)
    store.remove(number)
    with pytest.raises(StoreError, match=f"no campaign {number}; see: trilithon results list"):
        store.campaign(number)
    assert store.campaign(other) == filled(other)
    store.close()
    raw = sqlite3.connect(path)
    counts = [raw.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("quality", "runs", "samples")]
    raw.close()
    assert counts == [1, 2, 2]


def test_unknown_numbers_and_names_are_said(store: Store) -> None:
    number = start(store)
    with pytest.raises(StoreError, match="no placement gone"):
        store.start_run(number, "gone", 0, 0)
    with pytest.raises(StoreError, match="no run 5"):
        store.finish_run(5, "finished", 1)
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        store.add_sample(5, PREFILL)
    for act in (lambda: store.set_status(9, "finished"), lambda: store.remove(9), lambda: store.campaign(9)):
        with pytest.raises(StoreError, match="no campaign 9"):
            act()
    with pytest.raises(StoreError, match="cannot hold a value"):
        store.add_placement(number, replace(PLACEMENT, name="\ud83d"))


def run_python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


WRITES_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from trilithon.measure.records import PlacementRecord, Sample, Test
from trilithon.results.store.database import Store

store = Store.open(Path(sys.argv[1]))
number = store.start_campaign(started="", source="trilithon", version="", board={}, plan={})
store.add_placement(number, PlacementRecord(
    name="a/cpu", engine="a", build="", build_version="", unit="cpu", model={}, settings={}, must_match={}))
run = store.start_run(number, "a/cpu", 0, 0)
for index in count():
    store.add_sample(run, Sample(test=Test(kind="pp", prompt_tokens=1), started_ns=index, finished_ns=index + 1))
    print(index, flush=True)
"""


def test_a_killed_writer_loses_no_sample(path: Path) -> None:
    child = run_python(WRITES_FOR_EVER, path)
    assert child.stdout is not None
    printed = [int(child.stdout.readline()) for _ in range(25)]
    with Store.open(path) as store:  # it lives: this is no interrupted campaign, and its run is not over
        (summary,) = store.campaigns()
        assert (summary.status, store.last_interrupted()) == ("running", None)
        assert store.campaign(summary.id).runs == ()
        with pytest.raises(StoreError, match=f"measured by process {child.pid}; stop that first"):
            store.remove(summary.id)
        with pytest.raises(StoreError, match="is being measured by process"):
            store.set_status(summary.id, "running")  # a second --resume does not take it over
    child.send_signal(signal.SIGKILL)
    printed += [int(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    with Store.open(path) as store:
        assert store.last_interrupted() == summary.id
        campaign = store.campaign(summary.id)
        (run,) = campaign.runs
        assert campaign.status == "interrupted"
        assert {sample.started_ns for sample in run.samples} >= set(printed)
        assert (run.outcome, run.failure and run.failure.kind) == ("failed", "interrupted")
        assert run.finished_ns == run.samples[-1].finished_ns
        store.set_status(summary.id, "running")  # resumed by this process
        assert store.last_interrupted() is None
        assert len(store.campaign(summary.id).runs) == 1
        store.set_status(summary.id, "finished")
        assert store.last_interrupted() is None


def test_a_writer_that_ended_and_is_not_yet_reaped_is_dead(path: Path) -> None:
    child = run_python(WRITES_FOR_EVER, path)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with Store.open(path) as store:
        assert store.last_interrupted() == 1
    child.wait()
    child.stdout.close()


def test_a_later_process_with_the_same_number_is_another_one(store: Store, path: Path) -> None:
    number = start(store)
    boot, process, started = this_process().split()
    raw = sqlite3.connect(path)
    with raw:
        raw.execute("UPDATE campaigns SET writer = ?", (f"{boot} {process} {int(started) - 1}",))
    raw.close()
    assert store.last_interrupted() == number


WRITES_A_FEW = """
import sys
from pathlib import Path
from trilithon.measure.records import PlacementRecord, Sample, Test
from trilithon.results.store.database import Store

with Store.open(Path(sys.argv[1])) as store:
    number = store.start_campaign(started="", source="trilithon", version="", board={}, plan={})
    store.add_placement(number, PlacementRecord(
        name="a/cpu", engine="a", build="", build_version="", unit="cpu", model={}, settings={}, must_match={}))
    run = store.start_run(number, "a/cpu", 0, 0)
    for index in range(20):
        store.add_sample(run, Sample(test=Test(kind="pp", prompt_tokens=1), started_ns=index, finished_ns=index + 1))
    store.finish_run(run, "finished", 20)
    store.set_status(number, "finished")
"""


def test_several_processes_create_and_write_at_once(path: Path) -> None:
    children = [run_python(WRITES_A_FEW, path) for _ in range(4)]
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0] * 4
    with Store.open(path) as store:
        assert [summary.runs for summary in store.campaigns()] == [1] * 4
        assert all(len(store.campaign(summary.id).runs[0].samples) == 20 for summary in store.campaigns())


def test_a_database_of_schema_1_still_opens(path: Path) -> None:
    path.parent.mkdir()
    raw = sqlite3.connect(path)
    raw.executescript((DATA / "schema-1.sql").read_text(encoding="utf-8"))
    raw.close()
    with Store.open(path) as store:
        original = filled(1)
        runs = tuple(replace(run, remarks=()) for run in original.runs)  # which it did not have, nor answers
        placements = tuple(replace(placement, answers=()) for placement in original.placements)
        assert store.campaign(1) == replace(original, status="finished", runs=runs, placements=placements)
        assert store.last_interrupted() == 2
        fill(store)
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA user_version").fetchone()[0] == NEWEST
    raw.close()


def test_migrations_are_numbered_one_after_the_other() -> None:
    assert [number for number, _ in MIGRATIONS] == list(range(1, NEWEST + 1))


def test_a_newer_database_is_refused_and_untouched(path: Path) -> None:
    Store.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version = {NEWEST + 4}")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        Store.open(path)
    assert str(caught.value) == (
        f"results database {path} was written by a newer Trilithon (schema {NEWEST + 4}, this one knows {NEWEST});"
        " upgrade Trilithon, or set TRILITHON_DATA to another folder"
    )
    assert path.read_bytes() == before


def refused_and_kept(path: Path, pattern: str) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError, match=pattern) as caught:
        Store.open(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_a_file_that_is_no_database(path: Path, size: int) -> None:
    path.parent.mkdir()
    path.write_bytes(random.Random(size).randbytes(size))
    refused_and_kept(path, r"is not a results database and was not changed; move it away \(mv ")


@pytest.mark.parametrize("pages", [1, 3])
def test_a_database_that_was_cut_short(path: Path, pages: int) -> None:
    with Store.open(path) as store:
        fill(store)
    path.write_bytes(path.read_bytes()[: 4096 * pages])
    refused_and_kept(path, r"is corrupt and was not changed; move it away \(mv ")


def test_another_programs_database(path: Path) -> None:
    path.parent.mkdir()
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE recipes (name)")
    raw.close()
    refused_and_kept(path, "another program's database; move it away")


def test_damage_within_is_said_when_it_is_met(path: Path) -> None:
    with Store.open(path) as store:
        number = fill(store)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with Store.open(path) as store, pytest.raises(StoreError, match="is corrupt and was not changed"):
        store.campaign(number)


def test_a_damaged_value_is_said_when_it_is_met(path: Path) -> None:
    with Store.open(path) as store:
        number = fill(store)
    raw = sqlite3.connect(path)
    raw.execute("UPDATE placements SET model = '{\"na'")
    raw.commit()
    raw.close()
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="is corrupt and was not changed"):
            store.campaign(number)
        with pytest.raises(StoreError, match="is corrupt and was not changed"):
            store.campaigns()


def test_a_full_database_keeps_what_is_in_it(store: Store) -> None:
    number = fill(store)
    run = store.start_run(number, PLACEMENT.name, 2, 0)
    connection = store._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"no space left for results database .* whose contents are intact; free some"):
        for _ in range(1000):
            store.add_sample(run, ANSWER)
    with pytest.raises(StoreError, match="no space left"):
        store.add(replace(filled(0), plan={"text": "x" * 100_000}))
    kept = store.campaign(number)
    assert kept.runs == filled(number).runs
    connection.execute("PRAGMA max_page_count = 1000000")
    store.add_sample(run, PREFILL)
    store.finish_run(run, "finished", 1)
    assert store.campaign(number).runs[2].samples[-1] == PREFILL


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    with Store.open(small_disk / "results.sqlite") as store:
        number = fill(store)
        run = store.start_run(number, PLACEMENT.name, 2, 0)
        stored = 0
        with pytest.raises(StoreError, match="no space left for results database"):
            while stored < 10_000:
                store.add_sample(run, replace(ANSWER, answer_text="x" * 5000))
                stored += 1
        assert stored > 0
    copy = shutil.copytree(small_disk, small_disk.parent / "copy")  # where there is space again
    with Store.open(copy / "results.sqlite") as store:
        store.set_status(number, "interrupted")
        assert len(store.campaign(number).runs[2].samples) == stored


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (256 * 1024))
    with pytest.raises(StoreError, match="no space left for results database"):
        Store.open(small_disk / "results.sqlite")


@contextmanager
def plain_user() -> Iterator[None]:
    """Root may write everywhere; as nobody it may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="trilithon-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with plain_user():
        with pytest.raises(
            StoreError, match=r"cannot be written .*; make it and its folder writable, or set TRILITHON_DATA"
        ):
            Store.open(open_folder / "results.sqlite")
        with pytest.raises(StoreError, match=r"new: Permission denied; fix that, or set TRILITHON_DATA"):
            Store.open(open_folder / "new" / "results.sqlite")


def test_a_read_only_file_can_still_be_read(open_folder: Path) -> None:
    path = open_folder / "results.sqlite"
    with Store.open(path) as store:
        number = fill(store)
        store.set_status(number, "finished")
    path.chmod(0o444)
    open_folder.chmod(0o777)
    with plain_user(), Store.open(path) as store:
        assert store.campaign(number).runs == filled(number).runs
        with pytest.raises(StoreError, match="cannot be written"):
            start(store)


def test_a_folder_in_the_way_of_the_file(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"):
        Store.open(path)


def test_a_file_in_the_way_of_the_folder(path: Path) -> None:
    path.parent.write_text("")
    with pytest.raises(StoreError, match="File exists; fix that"):
        Store.open(path)


def test_closing_leaves_one_file(path: Path) -> None:
    with Store.open(path) as store:
        fill(store)
    assert [file.name for file in path.parent.iterdir()] == ["results.sqlite"]
