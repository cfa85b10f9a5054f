import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.cli.chat.conversation import HELP, Leave, Load, Look, More, Save, Send, Step, Tell, TerminalChat, read
from trilithon.errors import UserError

TALK = TerminalChat(model="m")


def after(*lines: str, talk: TerminalChat = TALK) -> tuple[TerminalChat, Step]:
    step: Step = More()
    for line in lines:
        talk, step = read(talk, line)
    return talk, step


def test_a_line_is_a_question() -> None:
    assert after("  How high is it? ") == (TALK, Send("How high is it?"))


@pytest.mark.parametrize("line", ["", "   ", '""""""'])
def test_nothing_asks_nothing(line: str) -> None:
    assert after(line) == (TALK, More())


def test_triple_quotes_hold_lines_together() -> None:
    talk, step = after('"""one', "  two", "")
    assert step == More()
    assert talk.prompt == "... "
    talk, step = read(talk, '/bye """')
    assert step == Send("one\n  two\n\n/bye")
    assert talk == TALK
    assert talk.prompt == ">>> "


def test_triple_quotes_on_one_line_and_in_the_middle() -> None:
    assert after('"""one"""')[1] == Send("one")
    assert after('what does """ mean?')[1] == Send('what does """ mean?')
    assert after('"""', 'print("""x""") # a', "end", '"""')[1] == Send('print("""x""") # a\nend')


def test_pasted_lines_come_as_one() -> None:
    assert after("one\ntwo")[1] == Send("one\ntwo")


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("/bye", Leave()),
        ("/exit", Leave()),
        ("/?", Tell(HELP)),
        ("/help", Tell(HELP)),
        ("/show", Look("info")),
        ("/show info", Look("info")),
        ("/show template", Look("template")),
        ("/show parameters", Look("parameters")),
        ("/show system", Look("system")),
        ("/save tea", Save("tea")),
        ("/load tea.1", Load("tea.1")),
    ],
)
def test_commands(line: str, step: Step) -> None:
    assert after(line) == (TALK, step)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/shwo", "/?"),
        ("/show license", "info, system, parameters, template"),
        ("/set", "/?"),
        ("/set colour red", "/?"),
        ("/set think maybe", "/?"),
        ("/save", "/save NAME"),
        ("/save ../tea", "/save NAME"),
        ("/load /etc/passwd", "/load NAME"),
        ("/load .hidden", "/load NAME"),
        ("/set parameter", "/set parameter NAME VALUE"),
        ("/set parameter seed", "/set parameter NAME VALUE"),
        ("/set parameter tempreature 1", "temperature"),
        ("/set parameter temperature hot", "number"),
    ],
)
def test_a_wrong_command_is_told_with_its_fix_and_changes_nothing(line: str, hint: str) -> None:
    talk, step = after(line)
    assert talk == TALK
    assert isinstance(step, Tell)
    assert hint in step.text


def test_a_path_at_the_beginning_is_no_command() -> None:
    assert after("/tmp/cat.png what is this?")[1] == Send("/tmp/cat.png what is this?")


def test_parameters_have_their_types_and_stop_words_gather() -> None:
    talk, step = after("/set parameter temperature 0.2", "/set parameter seed 7", "/set parameter stop a b")
    assert step == Tell("stop is 'a b' now")
    talk, step = after("/set parameter stop \n", talk=talk)
    talk, step = after("/set parameter stop END", talk=talk)
    assert talk.parameters == {"temperature": 0.2, "seed": 7, "stop": ["a b", "END"]}
    assert talk.body()["options"] == talk.parameters


def test_system_in_one_line_in_several_and_taken_back() -> None:
    assert after("/set system Be brief.")[0].system == "Be brief."
    talk, step = after('/set system """Be', 'brief."""')
    assert (talk, step) == (replace(TALK, system="Be\nbrief."), Tell("the system prompt is set"))
    assert after("/show system", talk=talk)[1] == Tell("Be\nbrief.")
    assert after("/set system", talk=talk)[0] == TALK


def test_think_verbose_and_format() -> None:
    talk, _ = after("/set nothink", "/set verbose", "/set format json")
    assert (talk.think, talk.verbose, talk.format) == (False, True, "json")
    talk, _ = after("/set think", "/set quiet", "/set noformat", talk=talk)
    assert (talk.think, talk.verbose, talk.format) == (True, False, "")
    assert after("/set think low")[0].think == "low"


def test_the_body_is_what_ollama_takes() -> None:
    assert TALK.asked("Hello").body() == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
    }
    talk = replace(TALK, system="Be brief.", think=False, format="json", parameters={"seed": 1})
    talk = talk.asked("Hello", ("aGk=",)).answered("Hi").asked("And?")
    assert talk.body() == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello", "images": ["aGk="]},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "And?"},
        ],
        "stream": True,
        "options": {"seed": 1},
        "think": False,
        "format": "json",
    }


def test_clear_forgets_what_was_said_alone() -> None:
    talk = replace(TALK, system="Be brief.").asked("Hello").answered("Hi")
    assert after("/clear", talk=talk)[0] == replace(TALK, system="Be brief.")


def test_what_was_saved_is_loaded() -> None:
    talk = replace(TALK, system="Be brief.", parameters={"stop": ["a"], "top_p": 0.5}, think=True)
    talk = talk.asked("Hello", ("aGk=",)).answered("Grüß dich 😀")
    assert TerminalChat(model="other", verbose=True).loaded(talk.to_json()) == replace(talk, verbose=True)


GOOD = json.loads(TALK.asked("Hello").to_json())


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", "[" * 100_000, '{"form": 2}'),
        *(
            json.dumps({**GOOD, name: value})
            for name, value in {
                "model": 5,
                "messages": [{"role": "king", "content": ""}],
                "parameters": {"temperature": "hot"},
                "think": "much",
                "format": 5,
            }.items()
        ),
        json.dumps({**GOOD, "messages": [{"role": "user", "content": None}]}),
        json.dumps({**GOOD, "messages": [{"role": "user", "content": "", "images": [5]}]}),
        json.dumps({name: value for name, value in GOOD.items() if name != "system"}),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_conversation_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="/save NAME") as caught:
        TALK.loaded(text)
    assert "\n" not in str(caught.value)


@given(st.lists(st.text(max_size=20) | st.sampled_from(['"""', "/set system", '/set system """', "/clear"])))
def test_any_lines_are_read_and_only_open_quotes_wait(lines: list[str]) -> None:
    talk = TALK
    for line in lines:
        talk, step = read(talk, line)
        assert talk.begun is None or isinstance(step, More)
        assert not isinstance(step, Send) or step.text
    json.dumps(talk.body())


@given(st.text(), st.text())
def test_any_text_is_kept_as_it_is(question: str, answer: str) -> None:
    talk = TALK.asked(question).answered(answer)
    assert TALK.loaded(talk.to_json()) == talk
