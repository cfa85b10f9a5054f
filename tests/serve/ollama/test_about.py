"""What is said of a model in tags, ps and show, from its header and its manifest."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.models.files.gguf_header import SkippedArray
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.serve.ollama.about import (
    ModelDescription,
    about,
    capabilities,
    details,
    expires_at,
    model_info,
    modelfile_text,
    parameters_text,
    plain_values,
    rfc3339,
    template_text,
)


def manifest_of(path: Path, model: str = "m") -> Manifest:
    file = StoredFile(
        role="weights", digest="", size_bytes=path.stat().st_size, name=path.name, format="gguf", path=path
    )
    name = ModelName("registry.ollama.ai", "library", model, "latest")
    return Manifest(name=name, files=(file,), source="", created=now())


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def known(tiny: Path, store: ModelStore) -> ModelDescription:
    return about(manifest_of(tiny), store)


def test_details_are_all_filled(known: ModelDescription, tiny: Path) -> None:
    found = details(manifest_of(tiny), known)
    assert found == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "164.16K",
        "quantization_level": "F16",
        "context_length": 2048,
        "embedding_length": 64,
    }
    unread = details(manifest_of(tiny, "qwen2.5-0.5b-it"), None)
    assert (unread["parameter_size"], unread["format"], unread["family"]) == ("0.5B", "gguf", "unknown")


@pytest.mark.parametrize(("count", "text"), [(999, "1.00K"), (494_030_000, "494.03M"), (7_600_000_000, "7.6B")])
def test_parameters_are_counted_as_ollama_counts(known: ModelDescription, tiny: Path, count: int, text: str) -> None:
    told = replace(known, file=replace(known.file, parameters=count))
    assert details(manifest_of(tiny), told)["parameter_size"] == text


def test_capabilities_are_in_ollamas_words(known: ModelDescription) -> None:
    assert capabilities(known) == ["completion"]
    file = replace(known.file, capabilities=frozenset({"tools", "thinking", "vision"}))
    filling = ModelDescription(file, {"tokenizer.ggml.fim_pre_token_id": 5})
    assert capabilities(filling) == ["completion", "vision", "tools", "insert", "thinking"]
    assert capabilities(ModelDescription(replace(file, kind="embedding"), {})) == ["embedding"]
    assert capabilities(ModelDescription(replace(file, kind="reranker"), {})) == ["rerank"]
    assert capabilities(ModelDescription(replace(file, kind="base"), {}))[0] == "completion"


def test_a_headers_values_fit_into_json(known: ModelDescription) -> None:
    info = model_info(known, verbose=False)
    assert info["general.architecture"] == "llama"
    assert info["llama.context_length"] == 2048
    assert info["general.parameter_count"] == 164160
    odd = {"a": math.nan, "b": (1, math.inf), "c": SkippedArray(9), "tokenizer.chat_template": "x", "d": True}
    assert plain_values(odd, verbose=False) == {"a": None, "b": None, "c": None, "d": True}
    assert plain_values(odd, verbose=True)["b"] == [1, None]
    json.dumps(plain_values(odd, verbose=True), allow_nan=False)


def test_the_template_is_the_one_that_is_obeyed(
    tmp_path: Path, tiny: Path, store: ModelStore, known: ModelDescription
) -> None:
    assert "Q: " in template_text(manifest_of(tiny), known, store)
    own = write_tiny_model(tmp_path / "own.gguf", template="{% if tools %}{% endif %}own")
    manifest = manifest_of(own)
    assert template_text(manifest, about(manifest, store), store).endswith("own")
    assert template_text(replace(manifest, template="said"), known, store) == "said"


def test_settings_are_laid_out_by_line(tiny: Path) -> None:
    said = {"temperature": 0.5, "stop": ["<a>", "<b>"], "think": True}
    manifest = replace(manifest_of(tiny), parameters=said, system='ends with """\nand goes on')
    assert parameters_text(manifest).splitlines() == [
        'stop                           "<a>"',
        'stop                           "<b>"',
        "temperature                    0.5",
        "think                          true",
    ]
    assert modelfile_text(manifest).endswith(f"FROM {manifest.name}\n")


def test_a_file_that_changed_is_read_again(tmp_path: Path, store: ModelStore) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", context=512)
    assert about(manifest_of(path), store).file.context_train == 512
    path.unlink()
    write_tiny_model(path, context=1024)
    assert about(manifest_of(path), store).file.context_train == 1024


def test_times_have_their_zone() -> None:
    assert rfc3339("2026-01-02T03:04:05") == "2026-01-02T03:04:05+00:00"
    assert rfc3339("2026-01-02T03:04:05+02:00") == "2026-01-02T03:04:05+02:00"


@given(st.none() | st.floats(min_value=-10, allow_nan=False))
def test_any_end_can_be_converted_by_clients(seconds: float | None) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    found = datetime.fromisoformat(expires_at(seconds, at))
    assert at <= found <= at + timedelta(days=110_000)
    found.timestamp()
    if seconds is None or seconds > 2**63 / 1e9:
        assert found.year == 2318
