"""Which models the page lists, where each lies, and the filter, orders and pages over them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trilithon.board.snapshot import read_board
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.model_store import ModelStore
from trilithon.serve.catalog.catalog import Catalog, CatalogEntry
from trilithon.settings import Configuration
from trilithon.web.models.library import ROWS_ON_A_PAGE, ModelListRow, page_of, pages_of, read_library, selected


def row(name: str, *, created: str = "2026-01-01T00:00:00+00:00", quantization: str = "Q4_K_M") -> ModelListRow:
    made = ModelName("registry.ollama.ai", "library", *name.split(":"))
    manifest = Manifest(name=made, files=(), source="the hub", created=created)
    return ModelListRow(
        entry=CatalogEntry(name, manifest, ""), place="store", quantizations=(quantization,), formats=("gguf",)
    )


def names(rows: object) -> list[str]:
    return [each.name for each in rows]  # type: ignore[attr-defined]


def test_what_can_be_served_and_what_lacks_a_file(
    configuration: Configuration, keep: Callable[..., str], tiny: Path
) -> None:
    whole, broken = keep("whole:f16"), keep("broken:f16", license_text="MIT")
    with ModelStore.open(configuration) as store:
        manifest = next(each for each in store.list() if str(each.name) == broken)
        store.blob_path(manifest.of_role("license")[0].digest).unlink()
        kept = next(each for each in store.list() if str(each.name) == whole)
        store.local.root.joinpath("manifests", *kept.name.parts[:2], "odd").mkdir()
        store.local.root.joinpath("manifests", *kept.name.parts[:2], "odd", "x.json").write_text("{")
    library = read_library(Catalog(configuration, read_board(), paths=[tiny]))
    found = {each.name: each for each in library.rows}
    assert sorted(found) == [broken, "tiny:latest", whole]
    assert (found[whole].place, found[whole].missing, found[whole].is_removable) == ("store", (), True)
    assert (found[broken].place, found[broken].missing) == ("store", ("LICENSE",))
    assert (found["tiny:latest"].place, found["tiny:latest"].is_removable) == ("elsewhere", False)
    (problem,) = library.problems
    assert "x.json" in problem


def test_a_layers_model_is_read_only(configuration: Configuration, keep: Callable[..., str], tmp_path: Path) -> None:
    name = keep("small:f16")
    layered = replace(configuration, data=tmp_path / "other", stores=(configuration.data / "models",))
    (found,) = read_library(Catalog(layered, read_board())).rows
    assert (found.name, found.place, found.is_removable) == (name, "layer", False)


def test_words_of_the_filter_are_all_wanted() -> None:
    rows = [row("qwen:7b"), row("qwen:1b", quantization="Q8_0"), row("gemma:1b")]
    assert names(selected(rows, " QWEN  q8 ", "name")) == ["qwen:1b"]
    assert names(selected(rows, "hub", "name")) == ["gemma:1b", "qwen:1b", "qwen:7b"]
    assert names(selected(rows, "llama", "name")) == []


def test_times_of_other_zones_are_ordered_as_times() -> None:
    early = row("a:1", created="2026-01-01T10:00:00+09:00")
    late = row("b:1", created="2026-01-01T02:00:00+00:00")
    assert names(selected([early, late], "", "newest")) == ["b:1", "a:1"]


@given(st.integers(0, 130))
def test_every_row_is_on_one_page(count: int) -> None:
    rows = [row(f"m:{number}") for number in range(count)]
    pages = [page_of(rows, number) for number in range(pages_of(rows))]
    assert [each for page in pages for each in page] == rows
    assert all(0 < len(page) <= ROWS_ON_A_PAGE for page in pages) or not rows
