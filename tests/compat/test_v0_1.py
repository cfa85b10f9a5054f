"""Files that version 0.1 wrote open unchanged, with the same values. make.py wrote the copies in v0_1/.

These names are on disk. Later code must keep reading them, whatever its own classes and modules are called:

results.sqlite   campaigns.plan (JSON, read by `bench --resume`): model, tests (kind, prompt_tokens, generated_tokens,
                 depth, question), also, placements, variants, rounds, budget_seconds, reference, quality, pin_clocks,
                 keep_awake. placements.must_match (JSON) is compared as text; its "settings" lists the fields of
                 Settings by name ("threads 4, context 2048, …, kv_type_k f16"), and a handover adds "prefill build"
                 and "prefill settings". runs.failure (JSON): kind, message, cause, advice, last_words; --resume looks
                 for the kind "interrupted". samples.marks (JSON): prefill_elsewhere_ns, transfer_ns and others.
exports          trilithon_results, campaigns, then the fields of the records. An unknown field is refused.
plans.json       sha256, placement, board, campaign, sentence. `board` is "model · chip · cores" as text: a CPU core
                 that gets another name loses the plans of its boards.
placements       ENGINE[@BUILD]/UNIT:OPTION=VALUE in plans and campaigns: names of engines, builds and options.
footholds/       (the fallbacks that worked) where, unit, state, architecture, quantization, rung, falls (rung, kind,
                 cause, date, last_words). `rung` is a fallback's name, such as "flash attention off", compared as
                 text. The file name is a hash of the Python repr of a tuple, see conftest.py.
tuning.json      boot_id, pid, start_ticks, changes (path, old, new, effective).
builds.json      name, folder, facts. A build with "flags" in its facts was compiled by Trilithon.
keys.json        name, sha256, created.
models/          manifests/ (kind "trilithon model", version 1), blobs/sha256-…, partial/sha256-….data and .json
                 (size_bytes, done), links/, adopted.json (a list of folders).
conversations/   NAME.json of `trilithon run` (form 1); local/ and key-NAME/ of the web pages (wishes, chosen,
                 messages with number and parent).
chat-history     readline's own format.
config.toml      data, cache, builds, stores, models, rkllm_toolkit, gguf_converter, start_seconds, hang_seconds, and
                 the variables TRILITHON_DATA and so on.
hashes.sqlite    (a cache) device, inode, size, changed_ns, sha256.

Not copied, because every file of it is specific to a machine and is made again when it is missing: cache/devices,
cache/models, cache/sources, cache/builds.
"""

import contextlib
import json
import random
import sqlite3
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon import __version__

Program = Callable[..., Any]

FILES = Path(__file__).parent / "v0_1"
FAST = "scripted/cpu:prefill=2000,decode=200"
SLOW = "scripted/gpu:prefill=400,decode=40"
WRONG = "scripted/npu:prefill=2000,decode=200,wrong=0.5"
CRASH = "scripted/gpu:prefill=2000,decode=200,crash_after=2"
BOTH = "scripted/npu:prefill=4000,decode=25+scripted/cpu:prefill=500,decode=1000"


def stdout_of(done: Any, code: int = 0) -> str:
    assert done.code == code, done.stderr
    return str(done.stdout)


def json_of(done: Any, code: int = 0) -> Any:
    return json.loads(stdout_of(done, code))


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def contains(new: Any, old: Any) -> bool:
    """Whether `new` has everything that `old` has; it may have more members."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(name in new and contains(new[name], old[name]) for name in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(contains, new, old))
    return bool(new == old)


@pytest.fixture
def of_this_version(old_home: Path) -> None:
    """The scripted engine of another version of Trilithon is another build. Here it is taken for the same one."""
    with contextlib.closing(sqlite3.connect(old_home / "kept/data/results.sqlite")) as connection, connection:
        words = ("scripted 0.1.0", f"scripted {__version__}")
        connection.execute("UPDATE placements SET must_match = replace(must_match, ?, ?)", words)


# -- results


def test_the_campaigns_are_listed(trilithon: Program) -> None:
    campaigns = {row["id"]: row for row in json_of(trilithon("results", "list", "--json"))}
    assert {number: (row["status"], row["source"], row["runs"]) for number, row in campaigns.items()} == {
        1: ("finished", "trilithon", 20),
        2: ("finished", "trilithon", 1),
        3: ("finished", "trilithon", 1),
        4: ("finished", "trilithon", 1),
        5: ("interrupted", "trilithon", 0),
        6: ("interrupted", "trilithon", 3),
        7: ("finished", "llama-bench", 6),
    }
    assert campaigns[1]["placements"] == [FAST, SLOW, WRONG, CRASH]
    assert campaigns[2]["placements"] == [BOTH]
    assert campaigns[2]["tests"] == ["pp16", "tg8", "pp64+tg4"]
    assert campaigns[3]["tests"] == ["cold", "question"]
    assert (campaigns[3]["models"], campaigns[7]["models"]) == (["Tiny"], ["qwen2.5-0.5b-q4_0"])


def test_figures_and_quality_are_what_they_were(trilithon: Program) -> None:
    figures = json_lines(stdout_of(trilithon("results", "show", "1", "-o", "jsonl")))
    assert [(row["placement"], row["test"], row["quality"], row["runs"]) for row in figures] == [
        (FAST, "pp16", "reference", 5),
        (FAST, "tg8", "reference", 5),
        (SLOW, "pp16", "same", 5),
        (SLOW, "tg8", "same", 5),
        (WRONG, "pp16", "degraded", 5),
        (WRONG, "tg8", "degraded", 5),
        (CRASH, "pp16", "unknown", 0),
        (CRASH, "tg8", "unknown", 0),
    ]
    medians = [1204.6860178, 195.72122574, 369.14787566, 39.608373789, 1485.2224543, 197.70174196]
    assert [row["median"] for row in figures[:6]] == pytest.approx(medians)
    assert [row["median"] for row in figures[6:]] == [None, None]
    assert [row["divergence"] for row in figures[4:6]] == pytest.approx([0.99999202464] * 2)
    assert all("55.0" in str(row) and "memory 2112 MHz" in str(row) for row in figures[:6])  # what sensors told


def test_times_of_cold_starts_and_of_a_question_are_what_they_were(trilithon: Program) -> None:
    medians = [row["median"] for row in json_lines(stdout_of(trilithon("results", "show", "3", "-o", "jsonl")))]
    assert medians[:4] == pytest.approx([0.610396857, 0.495734867, 0.034791661, 0.00287958])
    assert {209.0, 1.189375286, 1.128873232, 0.060502054} <= set(medians[4:])


def test_every_campaign_is_shown(trilithon: Program) -> None:
    shown = trilithon("results", "show", *range(1, 8))
    text = stdout_of(shown)
    for words in (f"1:{FAST}", "2:scripted/npu", "3:llama.cpp@embedded", "4:llama.cpp@mali/gpu", "7:llama.cpp/cpu"):
        assert words in text
    assert "segmentation fault (SIGSEGV)" in text
    assert "flash attention off" in shown.stderr


def test_an_imported_campaign_has_the_figures_of_its_file(trilithon: Program) -> None:
    exported = json_lines(stdout_of(trilithon("results", "export", "7", "-o", "jsonl")))
    before = json.loads((FILES / "llama-bench.json").read_text())
    for row, old in zip(exported, before, strict=True):
        assert (row["n_prompt"], row["n_gen"], row["model_filename"]) == (
            old["n_prompt"],
            old["n_gen"],
            old["model_filename"],
        )
        assert row["samples_ns"] == old["samples_ns"]


def test_a_comparison_says_the_same(trilithon: Program) -> None:
    prefill, decode = json_of(trilithon("results", "compare", f"1:{FAST}", f"1:{SLOW}", "--json"))
    assert (prefill["test"], decode["test"]) == ("pp16", "tg8")
    assert decode["verdict"] == "better"
    ratio = decode["ratio"]
    assert [ratio["ratio"], ratio["low"], ratio["high"]] == pytest.approx([4.9414102884, 4.1820170438, 5.0902683707])


def test_an_export_is_the_same_and_can_be_imported(trilithon: Program) -> None:
    """A handover's campaign: its marks, and the settings of both halves."""
    old = json.loads((FILES / "export.json").read_text())
    (sample,) = (one for one in old["campaigns"][0]["runs"][0]["samples"] if one["test"]["kind"] == "pg")
    assert {"prefill_elsewhere_ns", "transfer_ns"} <= set(sample["marks"])
    new = json_of(trilithon("results", "export", "2"))
    for one in (*old["campaigns"], *new["campaigns"]):
        del one["plan"]["model"]  # a path
    assert contains(new, old)
    assert "already here as 2" in stdout_of(trilithon("results", "import", FILES / "export.json"))
    trilithon("results", "rm", "2")
    assert "campaign 8" in stdout_of(trilithon("results", "import", FILES / "export.json"))
    again = json_of(trilithon("results", "export", "8"))
    assert contains(again["campaigns"][0]["runs"], old["campaigns"][0]["runs"])


@pytest.mark.slow
def test_a_report_is_written_of_an_old_campaign(trilithon: Program, tmp_path: Path) -> None:
    stdout_of(trilithon("results", "report", "1", "--report", tmp_path / "report"))
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert "Quartz64 Model A" in page
    assert WRONG in page


@pytest.mark.slow
def test_a_stopped_campaign_goes_on(trilithon: Program, of_this_version: None) -> None:
    """That needs the plan, and the same words for file, board, build and settings as before."""
    assert "tg8" in stdout_of(trilithon("bench", "--resume"))
    (row,) = (row for row in json_of(trilithon("results", "list", "--json")) if row["id"] == 6)
    assert row["status"] == "finished"
    figures = json_lines(stdout_of(trilithon("results", "show", "6", "-o", "jsonl")))
    assert [row["runs"] for row in figures] == [2] * 4


@pytest.mark.slow
def test_new_results_are_comparable_with_old_ones(trilithon: Program, of_this_version: None) -> None:
    """Nothing that has to match differs, in neither half of a handover."""
    words = ("-p", "16", "-n", "8", "--test", "pp", "--test", "tg", "-r", "1", "--no-quality", "--placement", BOTH)
    stdout_of(trilithon("bench", "tiny", *words))
    comparisons = json_of(trilithon("results", "compare", "2", "8", "--json"))
    assert [(row["test"], row["differs"]) for row in comparisons] == [("pp16", []), ("tg8", [])]


# -- models


def test_the_models_are_listed(trilithon: Program) -> None:
    models = {row["name"]: row for row in json_of(trilithon("list", "--json"))}
    assert {name: (row["size_bytes"], row["adopted"], row["read_only"]) for name, row in models.items()} == {
        "hf.co/acme/converted:latest": (2646, False, False),
        "hf.co/acme/pulled-GGUF:latest": (74556, False, False),
        "acme/twin:two": (71552, False, False),
        "borrowed:latest": (71552, True, False),
        "brief:v1": (71614, False, False),
        "layered:latest": (71552, False, True),
        "parted:latest": (53120, False, False),
        "tiny:latest": (71552, False, False),
        "tiny:F16": (71552, True, True),
        "other:F16": (71552, True, True),
    }
    assert all(row["complete"] for row in models.values())
    assert models["hf.co/acme/converted:latest"]["quantizations"] == ["w8a8"]
    assert [name for name, row in models.items() if row["synthetic"]] == ["parted:latest"]


def test_what_a_modelfile_said_is_shown(trilithon: Program) -> None:
    model = json_of(trilithon("show", "brief:v1", "--json"))
    assert model["parameters"] == {"temperature": 0.25, "stop": ["###", "END"], "num_ctx": 512}
    assert model["system"] == "Answer briefly."
    assert model["template"] == "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert [(message["role"], message["content"]) for message in model["messages"]] == [
        ("user", "Hello"),
        ("assistant", "Hello to you."),
    ]
    assert [(file["role"], file["name"]) for file in model["files"]] == [
        ("weights", "tiny-F16.gguf"),
        ("template", "chat_template.jinja"),
        ("license", "license.txt"),
    ]


def test_a_converted_model_and_one_with_a_projector_are_shown(trilithon: Program) -> None:
    (file,) = json_of(trilithon("show", "hf.co/acme/converted", "--json"))["files"]
    assert (file["role"], file["format"], file["target_platform"]) == ("weights", "rkllm", "RK3588")
    model = json_of(trilithon("show", "hf.co/acme/pulled-GGUF", "--json"))
    assert [(file["role"], file["name"]) for file in model["files"]] == [
        ("weights", "pulled-F16.gguf"),
        ("projector", "mmproj-pulled-F16.gguf"),
    ]


def test_a_model_of_two_files_is_shown(trilithon: Program) -> None:
    model = json_of(trilithon("show", "parted", "--json"))
    assert [file["name"] for file in model["files"]] == ["parted-00001-of-00002.gguf", "parted-00002-of-00002.gguf"]
    assert "gemma3" in json.dumps(model)
    done = trilithon("bench", "tiny", "--reference", "parted", "--placement", FAST)
    assert done.code == 2
    assert "synthetic" in done.stderr  # the file itself says so


def test_every_file_is_what_it_should_be(trilithon: Program) -> None:
    assert json_of(trilithon("verify", "--json")) == []
    assert "0 files, 0 unfinished" in stdout_of(trilithon("prune", "--dry-run"))
    assert trilithon("show", "layered").stdout.count("From the second store.") == 1


def test_models_can_be_removed(trilithon: Program, old_home: Path) -> None:
    names = ("tiny", "acme/twin:two", "hf.co/acme/pulled-GGUF", "brief:v1", "parted", "borrowed")
    stdout_of(trilithon("rm", *names, "hf.co/acme/converted"))
    blobs = old_home / "kept/data/models/blobs"
    assert list(blobs.iterdir()) == []
    assert {row["name"] for row in json_of(trilithon("list", "--json"))} == {"layered:latest", "tiny:F16", "other:F16"}


def test_adopted_folders_are_known_and_can_be_forgotten(trilithon: Program, old_home: Path) -> None:
    adopted = json_of(trilithon("adopt", "--json"))
    assert {model["name"]: model["place"] for model in adopted["models"]} == {
        "tiny:F16": str(old_home / "loose/tiny-F16.gguf"),
        "other:F16": str(old_home / "adopted/other-F16.gguf"),
    }
    assert "other:F16" not in stdout_of(trilithon("adopt", "--forget", old_home / "adopted"))


def test_a_stopped_download_goes_on_where_it_stopped(trilithon: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from standin_hub import HubRepository, HubStandIn
    from standin_web import WebStandIn

    content = b"GGUF" + random.Random(9).randbytes(20_000)
    with WebStandIn() as storage, HubStandIn(storage) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repositories["acme/stopped-GGUF"] = HubRepository({"stopped-F16.gguf": content})
        stdout_of(trilithon("pull", "hf.co/acme/stopped-GGUF"))
        begun = [asked.span[0] for asked in storage.asked if asked.span and not asked.is_look]
    assert min(begun) == 8_000
    assert json_of(trilithon("verify", "--json")) == []


# -- settings, engines, keys, clocks


def test_every_setting_is_known_as_a_variable_too(
    trilithon: Program, old_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tomllib.loads((old_home / "config/trilithon/config.toml").read_text())
    assert len(config) == 9
    (old_home / "config/trilithon/config.toml").unlink()
    assert json_of(trilithon("key", "list", "--json")) == []
    for name, value in config.items():
        monkeypatch.setenv(f"TRILITHON_{name.upper()}", value[0] if isinstance(value, list) else str(value))
    assert [key["name"] for key in json_of(trilithon("key", "list", "--json"))] == ["ci", "phone"]
    assert {"layered:latest", "tiny:F16"} <= {row["name"] for row in json_of(trilithon("list", "--json"))}


def test_builds_are_known_with_how_they_were_made(trilithon: Program, old_home: Path) -> None:
    builds = {row.get("where", ""): row for row in json_of(trilithon("engines", "list", "--json"))}
    for name, source in (("mali", "added"), ("native-0.3.36", "built here"), ("plain", "settings")):
        row = builds[str(old_home / "engines" / name / "llama-server")]
        assert (row["version"], row["source"]) == ("6123 (abc1234)", source)
    assert "c++ (Debian 12.2.0-14) 12.2.0" in json.dumps(builds)
    stdout_of(trilithon("engines", "remove", "mali"))
    assert "mali" not in stdout_of(trilithon("engines", "list"))


def test_the_doctor_knows_which_safer_settings_were_needed(trilithon: Program) -> None:
    (text,) = (str(row) for row in json_of(trilithon("doctor", "--json"))["engines"] if "@mali/gpu" in str(row))
    assert "llama F16 runs with flash attention off" in text
    assert "segmentation fault (SIGSEGV)" in text


def test_safer_settings_are_taken_at_once(trilithon: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build crashes with flash attention. Without, it starts a program that logs the start and exits: the campaign
    starts its one run with the known settings, and tries nothing before."""
    server, starts = tmp_path / "server", tmp_path / "starts"
    server.write_text(f'#!/bin/sh\necho "$@" >> {starts}\nexit 1\n')
    server.chmod(0o755)
    monkeypatch.setenv("COMPAT_LLAMA_SERVER", str(server))
    words = ("-n", "8", "--test", "tg", "-r", "1", "--no-quality", "--placement", "llama.cpp@mali/gpu")
    assert trilithon("bench", "tiny", *words).code == 1
    assert starts.read_text().count("--flash-attn off") == starts.read_text().count("--host ") == 1


def test_keys_are_listed_and_new_ones_stand_beside_them(trilithon: Program, old_home: Path) -> None:
    before = json.loads((old_home / "kept/data/keys.json").read_text())
    stdout_of(trilithon("key", "add", "new"))
    stdout_of(trilithon("key", "rm", "phone"))
    assert [key["name"] for key in json_of(trilithon("key", "list", "--json"))] == ["ci", "new"]
    assert json.loads((old_home / "kept/data/keys.json").read_text())[0] == before[0] | {"scope": "admin"}


def test_clocks_that_were_left_pinned_are_put_back(trilithon: Program, board: Path, old_home: Path) -> None:
    changes = json.loads((old_home / "kept/data/tuning.json").read_text())["changes"]
    files = {board / change["path"].lstrip("/"): change for change in changes}
    assert {file.name for file in files} == {"scaling_governor", "governor", "disable"}
    for file, change in files.items():
        file.write_text(change["new"] + "\n")
    (finding,) = (row for row in json_of(trilithon("doctor", "--json"))["findings"] if row["id"] == "clocks-left")
    assert finding["severity"] == "warning"
    stdout_of(trilithon("doctor", "--restore"))
    assert [file.read_text() for file in files] == [change["old"] for change in changes]
    assert "clocks-left" not in stdout_of(trilithon("doctor", "--json"))
