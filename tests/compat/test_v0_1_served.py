"""A server with the files of version 0.1: keys, plans, hashes and conversations. See test_v0_1.py for the formats."""

import contextlib
import json
import os
import pty
import select
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

FILES = Path(__file__).parent / "v0_1"
PLAN = "scripted/cpu:prefill=2000,decode=200"
ANSWER = "A trilithon is the simplest gate that people have ever built"
# Thrown away: they open nothing but these tests' own server.
KEYS = {
    "ci": "trl-qLyEmXxiaMJfW0sv_-Z5OAFceUUqz6muEC_RJjVJsNw",
    "gone": "trl-HMrdRHBHFsjOtDp_rQwNcXAoktAGoeRx-LX0cxsFyg4",
    "phone": "trl-v9uQYfzXHe1jULlyskEgitlL4neGis7S_Sy8_sF_RnA",
}


@pytest.fixture
def client(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=key("ci"), timeout=60) as client:
        yield client


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def chat(client: httpx.Client, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": False}
    answer = client.post("/api/chat", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["message"]["content"])


def test_keys_are_asked_for_and_good(client: httpx.Client) -> None:
    assert httpx.get(f"{client.base_url}/api/tags").status_code == 401
    assert client.get("/api/tags", headers=key("gone")).status_code == 401
    assert client.get("/api/tags", headers=key("phone")).status_code == 200


def test_the_models_are_served(client: httpx.Client) -> None:
    names = {model["name"] for model in client.get("/api/tags").json()["models"]}
    assert {"tiny:latest", "acme/twin:two", "hf.co/acme/pulled-GGUF:latest", "brief:v1", "layered:latest"} <= names


@pytest.mark.parametrize("model", ["tiny", "brief:v1", "borrowed"])
def test_a_model_runs_where_its_plan_says(client: httpx.Client, model: str) -> None:
    """Without a plan, the scripted engine is never chosen. The weights of all three are the same."""
    assert chat(client, model).startswith(ANSWER)
    name = model if ":" in model else f"{model}:latest"
    (loaded,) = (row for row in client.get("/api/ps").json()["models"] if row["name"] == name)
    assert loaded["placement"] == PLAN
    assert loaded["plan"]["stale"] == ["made by an older version"]
    assert loaded["plan"]["renewal"] == f"trilithon bench {name}"


def test_a_hash_that_is_known_is_not_computed_again(served: Any, client: httpx.Client) -> None:
    """A plan for a hash that no file has is obeyed for the file of which the cache says it."""
    with contextlib.closing(sqlite3.connect(served.home / "kept/cache/hashes.sqlite")) as connection, connection:
        connection.execute("UPDATE sha256 SET sha256 = ?", ("f" * 64,))
    plans = served.home / "kept/data/plans.json"
    (plan,) = json.loads(plans.read_text())
    other = plan | {"sha256": "f" * 64, "placement": PLAN + ",text=of the plan of a hash"}
    plans.write_text(json.dumps([plan, other]))
    assert chat(client, "other:F16").startswith("of the plan")


def test_the_pages_list_the_conversations_of_a_keys_owner(client: httpx.Client) -> None:
    pytest.importorskip("nicegui")
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert "What is a trilithon, ci?" in page
    assert "What is a trilithon, local?" not in page


def test_the_pages_read_a_conversation_whole(served: Any) -> None:
    from trilithon.web.chat.conversations import Conversations

    for owner, folder in (("", "local"), ("ci", "key-ci")):
        (path,) = (served.home / "kept/data/conversations" / folder).glob("*.json")
        talk = Conversations(served.home / "kept/data", owner).read(path.stem)
        assert talk.as_json() | {"chosen": {}} == json.loads(path.read_text()) | {"chosen": {}}
        assert [message.text for message in talk.path()] == [f"What is a trilithon, {owner or 'local'}?", "Two stones."]


def test_a_conversation_of_a_terminal_goes_on(served: Any) -> None:
    """Loaded and saved under another name, it is the same."""
    data = served.home / "kept/data"
    typed_before = (data / "chat-history").read_text().splitlines()
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("TRILITHON_")},
        **served.environment,
        "TRILITHON_HOST": served.url,
        "TRILITHON_API_KEY": KEYS["ci"],
        "TERM": "dumb",
    }
    shown = typed(
        [*served.command, "run", "tiny"], environment, "/load greeting", "/show system", "/save again", "/bye"
    )
    assert "Be brief." in shown
    before, after = (
        json.loads((data / "conversations" / f"{name}.json").read_text()) for name in ("greeting", "again")
    )
    assert after == before
    assert before["messages"][1]["content"].startswith(ANSWER)
    assert (data / "chat-history").read_text().splitlines()[: len(typed_before)] == typed_before


def typed(command: list[str], environment: dict[str, str], *lines: str) -> str:
    """What the program shows on a terminal where these lines are typed, one at each prompt."""
    master, slave = pty.openpty()
    shown, waiting, deadline = "", list(lines), time.monotonic() + 60
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as child:
        os.close(slave)
        seen = 0
        while child.poll() is None:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # its other side is closed
                    shown += os.read(master, 1 << 16).decode()
            if waiting and shown.find(">>> ", seen) >= 0:
                seen = len(shown)
                os.write(master, f"{waiting.pop(0)}\n".encode())
    os.close(master)
    assert child.returncode == 0, shown
    return shown
