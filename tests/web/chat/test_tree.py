"""Conversations as trees, on the disk, and as blocks of Markdown."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import TrilithonError, UserError
from trilithon.web.chat.answering import generation_of
from trilithon.web.chat.blocks import Blocks
from trilithon.web.chat.conversations import Conversations
from trilithon.web.chat.tree import ChatSettings, Conversation


def conversation() -> Conversation:
    return Conversation(id="0" * 16, created="2026-01-01T00:00:00+00:00")


def test_an_edit_is_a_branch_and_nothing_is_lost() -> None:
    tree = conversation()
    first = tree.add(0, "user", "one  two\nthree")
    answer = tree.add(first.number, "assistant", "yes")
    edited = tree.add(first.parent, "user", "other")
    assert tree.title == "one two three"
    assert [message.text for message in tree.path()] == ["other"]
    assert tree.branches(edited.number) == [first.number, edited.number]
    tree.choose(first.number)
    assert [message.text for message in tree.path()] == ["one  two\nthree", "yes"]
    assert tree.before(answer.number) == [first]


@given(st.lists(st.tuples(st.integers(0, 30), st.text(max_size=20)), max_size=30))
def test_any_tree_survives_the_disk(made: list[tuple[int, str]]) -> None:
    tree = conversation()
    for parent, text in made:
        tree.add(min(parent, len(tree.messages)), "user", text)
    again = Conversation.of_json(json.loads(json.dumps(tree.as_json())))
    assert again == tree
    assert again.path() == tree.path()


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {"id": st.just("x"), "created": st.just("y"), "wishes": _JSON, "messages": _JSON, "chosen": _JSON}
    )
)
def test_what_is_no_conversation_is_a_value_error(body: dict[str, Any]) -> None:
    try:
        found = Conversation.of_json(body)
    except ValueError:
        return
    assert len(found.path()) <= len(found.messages)


def test_a_circle_is_no_conversation() -> None:
    body = conversation().as_json()
    body["messages"] = [{"number": 1, "parent": 1, "role": "user"}]
    with pytest.raises(ValueError, match="parent"):
        Conversation.of_json(body)


def test_the_disk_keeps_each_keys_own_and_a_damaged_one_hides_no_other(tmp_path: Path) -> None:
    ann, bob, nobody = (Conversations(tmp_path, name) for name in ("ann", "bob", ""))
    tree = ann.begin()
    tree.add(0, "user", "mine")
    ann.keep(tree)
    (tmp_path / "conversations/key-ann" / f"{'f' * 16}.json").write_text("{")
    assert [heading.title for heading in ann.headings()] == ["mine"]
    assert ann.read(tree.id) == tree
    assert bob.headings() == nobody.headings() == []
    assert oct((tmp_path / "conversations/key-ann").stat().st_mode)[-3:] == "700"
    for id_ in ("../key-ann/" + tree.id, "f" * 16, "0" * 16):
        with pytest.raises(UserError):
            bob.read(id_)
    ann.remove(tree.id)
    assert ann.headings() == []


def test_two_pages_with_one_conversation_lose_nothing(tmp_path: Path) -> None:
    first, second = Conversations(tmp_path, ""), Conversations(tmp_path, "")
    tree = first.begin()
    asked = tree.add(0, "user", "one")
    first.keep(tree)
    other = second.read(tree.id)
    other.add(asked.number, "assistant", "by the second page")
    tree.add(asked.number, "assistant", "by the first page")
    second.keep(other)
    first.keep(tree)
    del other, tree
    (heading,) = first.headings()
    assert len(first.read(heading.id).messages) == 3


def test_the_list_reads_the_beginning_alone(tmp_path: Path) -> None:
    kept = Conversations(tmp_path, "")
    tree = kept.begin()
    tree.add(0, "user", 'say "\\ü\n"', images=["data:image/png;base64," + "A" * 10_000])
    kept.keep(tree)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(path.read_bytes()[:6000])
    assert [heading.title for heading in kept.headings()] == ['say "\\ü "']
    kept.remove(tree.id)
    assert kept.headings() == []


def test_one_that_is_too_long_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.web.chat.conversations._MOST_BYTES", 1000)
    kept = Conversations(tmp_path, "")
    tree = kept.begin()
    tree.add(0, "user", "short")
    kept.keep(tree)
    tree.add(1, "assistant", "long" * 300)
    with pytest.raises(UserError, match="go on in a new one"):
        kept.keep(tree)
    (path,) = tmp_path.rglob("*.json")
    assert "long" not in path.read_text()


def test_words_that_are_none_and_speakers_that_are_nobody_are_no_conversation() -> None:
    for damaged in ({"text": 5}, {"images": None}, {"images": [1]}, {"role": "system"}, {"error": None}):
        body = conversation().as_json()
        body["messages"] = [{"number": 1, "parent": 0, "role": "user"} | damaged]
        with pytest.raises(ValueError, match=r"is none|nobody|no conversation"):
            Conversation.of_json(body)


def test_a_disk_that_is_closed_is_told(tmp_path: Path) -> None:
    (tmp_path / "conversations").write_text("in the way")
    kept = Conversations(tmp_path, "")
    with pytest.raises(UserError, match="cannot be kept"):
        kept.keep(kept.begin())


MARKDOWN = "# A\n\ntext\nmore\n\n```py\na\n\nb\n```\n\n- x\n- y\n\nlast"


@given(st.lists(st.integers(1, 9)))
def test_blocks_are_the_same_wherever_the_text_is_cut(cuts: list[int]) -> None:
    blocks, found, at = Blocks(), [], 0
    for cut in cuts:
        found += blocks.feed(MARKDOWN[at : at + cut])
        at += cut
    found += blocks.feed(MARKDOWN[at:]) + blocks.finish()
    assert found == ["# A\n\n", "text\nmore\n\n", "```py\na\n\nb\n```\n\n", "- x\n- y\n\n", "last"]


@given(st.text(alphabet="ab`~ \n", max_size=300))
def test_no_text_is_lost_in_blocks(text: str) -> None:
    blocks = Blocks()
    found = "".join(blocks.feed(text) + blocks.finish())
    assert found.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_a_listing_without_end_is_cut_and_goes_on_as_one() -> None:
    blocks = Blocks()
    found = blocks.feed("```c\n" + "int x;\n" * 2000)
    assert len(found) > 2
    assert all(each.startswith("```c\n") and each.endswith("```\n") for each in found)
    assert len(blocks.rest) < 5000
    assert "".join(found).count("int x;") + blocks.rest.count("int x;") == 2000


def test_a_question_is_what_the_api_takes() -> None:
    tree = conversation()
    asked = tree.add(0, "user", "what?", images=["data:image/png;base64,AA=="])
    wishes = ChatSettings(system="be short", temperature=0.5, max_tokens=7, seed=3, context=512)
    found = generation_of("m", wishes, [asked], "llama.cpp/cpu")
    assert (found.model, found.context, found.placement, found.needs) == ("m", 512, "llama.cpp/cpu", {"vision"})
    assert [message["role"] for message in found.body["messages"]] == ["system", "user"]
    assert (found.body["temperature"], found.body["max_tokens"], found.body["seed"]) == (0.5, 7, 3)
    with pytest.raises(TrilithonError):
        generation_of("m", ChatSettings(temperature=float("nan")), [asked])


def test_a_conversation_is_sent_from_its_first_message_on() -> None:
    tree = conversation()
    for role, text in (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")):
        last = tree.add(len(tree.messages), role, text)
    before = tree.before(last.number)
    assert [message.text for message in before] == ["one", "two", "three"]
    found = generation_of("m", ChatSettings(system="be short"), before)
    assert [(message["role"], message["content"]) for message in found.body["messages"]] == [
        ("system", "be short"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
