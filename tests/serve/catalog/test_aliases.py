"""Other names for models: exact, with wildcards, listed and hidden; from the command line and config.toml."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_server import FAST, running

from trilithon.board.snapshot import read_board
from trilithon.errors import UserError
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import workspace
from trilithon.serve.catalog.aliases import Aliases
from trilithon.serve.catalog.catalog import Catalog
from trilithon.serve.service import Service
from trilithon.settings import Alias, Configuration, load_configuration

ALIASES = (
    Alias("gpt-4o", "alpha"),
    Alias("secret", "alpha", hidden=True),
    Alias("claude-*", "alpha"),
    Alias("claude-haiku-*", "beta"),
    Alias("odd name!*", "beta"),
    Alias("later", "not-here-yet"),
)


def test_the_longest_wildcard_counts() -> None:
    aliases = Aliases(ALIASES)
    assert [aliases.matching(name) for name in ("claude-opus-5", "Claude-Haiku-4-5", "gpt", "xclaude-a")] == [
        *("alpha", "beta"),
        *(None, None),
    ]
    assert [aliases.exact(name) for name in ("GPT-4o", "gpt-4o:latest", "gpt-4o-mini", "claude-*")] == [
        *("alpha", "alpha"),
        *(None, None),
    ]
    with pytest.raises(UserError, match="twice"):
        Aliases([Alias("a", "x"), Alias("A", "y")])
    with pytest.raises(UserError, match="twice"):
        Aliases([Alias("a*", "x"), Alias("A*", "y")])


def test_every_api_takes_them(configuration: Configuration, tmp_path: Path) -> None:
    paths = [write_tiny_model(tmp_path / f"{name}.gguf", seed=1) for name in ("alpha", "beta")]
    chosen = replace(configuration, aliases=ALIASES)
    with workspace() as folder:
        service = Service(Catalog(chosen, read_board(), paths=paths, placement=FAST), Pool(chosen, folder))
        with running(service, None) as server:
            http = server.http
            for name, key in {
                "gpt-4o": "alpha:latest",
                "secret": "alpha:latest",
                "claude-opus-5": "alpha:latest",
                "claude-haiku-4-5-20251001": "beta:latest",
                "odd name!3": "beta:latest",
                "beta": "beta:latest",
            }.items():
                chat = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
                for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
                    answer = http.post(path, json={**chat, "stream": False})
                    assert (answer.status_code, answer.json()["model"]) == (200, name), answer.text
                assert key in {loaded.key for loaded in service.pool.loaded()}
                assert http.post("/api/show", json={"model": name}).status_code == 200
                shown = http.get(f"/v1/models/{name}").json()["id"]
                assert shown == (key if name == "beta" else name)
            listed = [model["id"] for model in http.get("/v1/models").json()["data"]]
            assert sorted(listed) == ["alpha:latest", "beta:latest", "gpt-4o"]
            assert {model["name"] for model in http.get("/api/tags").json()["models"]} == set(listed)
            assert http.post("/api/show", json={"model": "later"}).status_code == 404
            assert http.get("/v1/models/other").status_code == 404
            for name in ("gpt-4o", "claude-x"):  # an alias never removes what it means
                assert http.request("DELETE", "/api/delete", json={"model": name}).status_code == 404
            assert all(path.exists() for path in paths)


@pytest.mark.parametrize(
    ("text", "aliases"),
    [
        ('[aliases]\n"claude-*" = "qwen3:4b"\n', (Alias("claude-*", "qwen3:4b"),)),
        ('aliases = {a = {model = "b", hidden = true}}', (Alias("a", "b", hidden=True),)),
    ],
)
def test_they_are_settings(home: Path, tmp_path: Path, text: str, aliases: Any) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    environment = {"HOME": str(home), "TRILITHON_CONFIG": str(file)}
    assert load_configuration(environment).aliases == aliases
    named = load_configuration({"HOME": str(home), "TRILITHON_ALIASES": "a=b,c-*=d:1"})
    assert named.aliases == (Alias("a", "b"), Alias("c-*", "d:1"))


@pytest.mark.parametrize(
    "text", ["aliases = 3", "[aliases]\na = 3", '[aliases]\na = {name = "b"}', '[aliases]\na = ""']
)
def test_what_is_no_alias_is_told(home: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UserError, match="aliases"):
        load_configuration({"HOME": str(home), "TRILITHON_CONFIG": str(file)})


def test_a_model_is_unloaded_and_not_what_its_name_is_an_alias_of(configuration: Configuration, tmp_path: Path) -> None:
    paths = [write_tiny_model(tmp_path / f"{name}.gguf", seed=1) for name in ("alpha", "beta")]
    chosen = replace(configuration, aliases=(Alias("alpha", "beta"),))

    async def body(folder: Path) -> None:
        catalog = Catalog(chosen, read_board(), paths=paths, placement=FAST)
        service = Service(catalog, Pool(chosen, folder))
        (alpha,) = (entry for entry in catalog.models() if entry.digest != catalog.find("beta").digest)
        await service.load("alpha", "me", None)
        assert list(service.pool.placements()) == ["beta:latest"]
        assert not await service.unload_entry(alpha)
        assert list(service.pool.placements()) == ["beta:latest"]
        assert await service.unload("alpha")
        await service.pool.drain(0)

    with workspace() as folder:
        asyncio.run(body(folder))
