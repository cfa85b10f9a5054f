"""The models that can be served, and what each one runs on."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilithon.board.snapshot import read_board
from trilithon.errors import ModelError, PlacementError
from trilithon.models.files.model_file import ModelFile
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.results.fingerprints import fingerprint_of
from trilithon.results.plans import Plan, keep_plan
from trilithon.serve.catalog.catalog import Catalog
from trilithon.settings import Configuration

SCRIPTED = "scripted/cpu:prefill=50000"


@pytest.fixture
def shelf(configuration: Configuration, tiny: Path) -> Catalog:
    return Catalog(configuration, read_board(), paths=[tiny])


@pytest.fixture
def stored(configuration: Configuration, tiny: Path) -> str:
    """The SHA-256 of a model in the store, called small:q4."""
    with ModelStore.open(configuration) as store:
        digest = store.add(tiny)
        file = StoredFile(
            role="weights", digest=digest, size_bytes=tiny.stat().st_size, name="small.gguf", format="gguf"
        )
        name = ModelName("registry.ollama.ai", "library", "small", "q4")
        store.put(Manifest(name=name, files=(file,), source="test", created=now(), parameters={"num_ctx": 300}))
        store.copy(name, replace(name, tag="copy"))
    return digest


def test_a_file_of_the_owners_is_a_model_under_its_name(shelf: Catalog, tiny: Path) -> None:
    (entry,) = shelf.models()
    assert entry.name == "tiny:latest"
    assert entry.size_bytes == tiny.stat().st_size
    assert shelf.find("tiny") == shelf.find("TINY:latest") == entry
    placement = shelf.placement(entry)
    assert placement.file.path == tiny
    assert len(placement.file.sha256) == 64


def test_the_stores_models_are_found_by_their_names(configuration: Configuration, stored: str) -> None:
    shelf = Catalog(configuration, read_board())
    copy, small = shelf.models()
    assert (copy.name, small.name) == ("small:copy", "small:q4")
    assert copy.digest == small.digest
    assert len(small.digest) == 64
    assert shelf.placement(small).file.sha256 == stored


def test_other_programs_models_are_not_searched_for_a_stored_one(
    configuration: Configuration, tiny: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Catalog(configuration, read_board(), paths=[tiny])

    def searched() -> None:
        raise AssertionError("other programs' folders were searched")

    monkeypatch.setattr(shelf, "_others", searched)
    assert shelf.find_stored("TINY") == shelf.find("tiny")
    entry = shelf.find_stored("small:q4")
    assert entry is not None and entry == shelf.find("small:q4")
    assert shelf.find_stored("small:other") is None
    with pytest.raises(ModelError):
        shelf.find_stored("../small")


@pytest.mark.parametrize("name", ["nobody", "small:other", "/etc/passwd", "../x", "https://example.com/x.gguf", ""])
def test_what_is_not_here_is_refused_and_no_path_is_a_name(shelf: Catalog, name: str) -> None:
    with pytest.raises(ModelError):
        shelf.find(name)


def test_the_context_is_the_clients_the_models_or_the_servers(configuration: Configuration, stored: str) -> None:
    shelf = Catalog(configuration, read_board(), context=512)
    entry = shelf.find("small:q4")
    assert shelf.placement(entry).settings.context == 300
    assert shelf.placement(entry, 400).settings.context == 400
    trained = shelf.file(entry).context_train
    assert trained is not None
    assert shelf.placement(entry, trained * 2).settings.context == trained


def test_a_plan_of_this_board_decides_while_it_can_run(configuration: Configuration, stored: str) -> None:
    board = read_board()
    shelf, entry = Catalog(configuration, board), Catalog(configuration, board).find("small:q4")
    default = shelf.placement(entry).name
    plan = Plan(sha256=stored, placement=SCRIPTED, board=board.identity(), campaign=1, sentence="")
    keep_plan(configuration.data, replace(plan, board="another"))
    assert shelf.placement(entry).name == default
    keep_plan(configuration.data, plan)
    assert shelf.placement(entry).name == SCRIPTED
    keep_plan(configuration.data, replace(plan, placement="llama.cpp@gone/cpu"))
    assert shelf.placement(entry).name == default


def test_a_plan_is_compared_with_the_machine_as_it_is_now(configuration: Configuration, stored: str) -> None:
    """A stale one is used all the same; one that is removed is not."""
    board = read_board()
    facts = fingerprint_of(SCRIPTED, board, configuration)
    plan = Plan(sha256=stored, placement=SCRIPTED, board=board.identity(), campaign=1, sentence="", fingerprint=facts)
    keep_plan(configuration.data, plan)
    # The server's own picture is old: governors were set since.
    shelf = Catalog(configuration, replace(board, kernel="5.10"))
    entry = shelf.find("small:q4")
    known = shelf.known_plan(entry, shelf.file(entry))
    assert known is not None
    assert (known.state, known.renewal) == ("current", "")
    keep_plan(configuration.data, replace(plan, fingerprint=facts | {"kernel": "5.10"}))
    known = shelf.known_plan(entry, shelf.file(entry))
    assert known is not None
    assert [str(fact) for fact in known.stale] == [f"kernel 5.10 → {board.kernel}"]
    assert shelf.placement(entry).name == SCRIPTED
    assert shelf.remove_plan(entry) is not None
    assert shelf.remove_plan(entry) is None
    assert shelf.placement(entry).name != SCRIPTED


def test_a_placement_of_the_owners_is_for_every_model(configuration: Configuration, tiny: Path) -> None:
    shelf = Catalog(configuration, read_board(), paths=[tiny], placement=SCRIPTED, slots=4)
    placement = shelf.placement(shelf.find("tiny"))
    assert placement.build.engine == "scripted"
    with pytest.raises(PlacementError):
        Catalog(configuration, read_board(), placement="nonsense")


def test_slots_are_the_servers_where_the_engine_has_them(configuration: Configuration, tiny: Path) -> None:
    shelf = Catalog(configuration, read_board(), paths=[tiny], slots=3)
    assert shelf.placement(shelf.find("tiny")).settings.slots == 3


def test_what_is_no_file_is_refused_at_once(configuration: Configuration, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a file"):
        Catalog(configuration, read_board(), paths=[tmp_path / "nothing.gguf"])
    (tmp_path / "noise.gguf").write_bytes(b"noise")
    with pytest.raises(ModelError):
        Catalog(configuration, read_board(), paths=[tmp_path / "noise.gguf"])


def test_a_file_is_read_once_however_many_ask_for_it_first(shelf: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six requests at once would hash it six times, and hold six headers in memory."""
    begun: list[str] = []

    def counted(self: Catalog, *words: Any) -> ModelFile:
        begun.append("read")
        return before(self, *words)

    before = Catalog._read_anew
    monkeypatch.setattr(Catalog, "_read_anew", counted)
    entry = shelf.find("tiny")
    with ThreadPoolExecutor(6) as threads:
        files = set(threads.map(lambda _: shelf.file(entry).sha256, range(24)))
    assert (len(files), begun) == (1, ["read"])


def test_the_outlook_is_told_without_reading_a_file_of_another_program(
    configuration: Configuration, tiny: Path
) -> None:
    shelf = Catalog(configuration, read_board(), paths=[tiny])
    (entry,) = shelf.models()
    before = shelf.outlook(entry)
    assert before.file.sha256 == ""
    assert before.file.parameters
    assert (before.placement, before.plan, before.refusal) == (shelf.placement(entry).name, None, "")
    after = shelf.outlook(entry)  # `placement` computed it, and it was remembered
    assert len(after.file.sha256) == 64
    assert after.context == shelf.placement(entry).settings.context


def test_the_outlook_follows_the_plan_and_says_what_cannot_run(configuration: Configuration, stored: str) -> None:
    board = read_board()
    shelf = Catalog(configuration, board)
    plan = Plan(sha256=stored, placement=SCRIPTED, board=board.identity(), campaign=1, sentence="so it was")
    keep_plan(configuration.data, plan)
    found = shelf.outlook(shelf.find("small:q4"))
    assert (found.placement, found.plan, found.context) == (SCRIPTED, plan, 300)
    assert found.known is not None
    assert found.known.text == (
        f"{SCRIPTED}, campaign 1; stale: made by an older version; renew it: trilithon bench small:q4"
    )
    nowhere = Catalog(configuration, board, placement="scripted@none/cpu").outlook(shelf.find("small:q4"))
    assert nowhere.placement == ""
    assert "scripted" in nowhere.refusal


@pytest.mark.parametrize(
    ("config", "name", "kv_types"),
    [
        ("[ARGS]\ncache-type-k = q8_0\ncache-type-v = q8_0\n", "llama.cpp/cpu:ctk=q8_0,ctv=q8_0", ("q8_0", "q8_0")),
        # The pipeline is of an engine that is not here, and flash attention cannot be off with such a type.
        ("[ENV]\nRKNPU_HYBRID=W8A8_STANDARD\n[ARGS]\nctk = q8_0\n", "llama.cpp/cpu:ctk=q8_0", ("q8_0", "f16")),
        ("[ENV]\nRKNPU_HYBRID=W8A8_STANDARD\n", "llama.cpp/cpu", ("f16", "f16")),
        ("[ARGS]\nflash-attn = off\ncache-type-v = q8_0\n", "llama.cpp/cpu", ("f16", "f16")),
    ],
)
def test_the_settings_of_rkllamas_folders(
    home: Path, configuration: Configuration, tiny: Path, config: str, name: str, kv_types: tuple[str, str]
) -> None:
    folder = home / "RKLLAMA/models/mine"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(tiny.read_bytes())
    (folder / "config.ini").write_text(config + ("" if "[ARGS]" in config else "[ARGS]\n") + "ctx-size = 512\n")
    shelf = Catalog(configuration, read_board())
    placement = shelf.placement(shelf.find("mine"))
    assert placement.name == shelf.outlook(shelf.find("mine")).placement == name
    assert (placement.settings.kv_type_k, placement.settings.kv_type_v) == kv_types
    assert placement.settings.context == 512
    other = Catalog(configuration, read_board(), placement=SCRIPTED)
    assert other.placement(other.find("mine")).name == SCRIPTED
