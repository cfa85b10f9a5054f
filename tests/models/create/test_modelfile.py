"""Ollama's Modelfile, read and written: the grammar's corners, values by type, and what nobody obeys."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.create.modelfile import Modelfile, parse_modelfile, to_modelfile
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, PresetMessage
from trilithon.models.store.parameters import check_parameter, read_parameter

NAME = ModelName("registry.ollama.ai", "library", "mario", "latest")


def refusal(text: str) -> str:
    with pytest.raises(ModelError) as caught:
        parse_modelfile(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def manifest(**more: Any) -> Manifest:
    return Manifest(name=NAME, files=(), source="created here", created="2026-11-22T12:00:00+00:00", **more)


def test_the_example_of_the_documentation() -> None:
    found = parse_modelfile(
        "# Mario\n"
        "FROM llama3.2\n"
        "PARAMETER temperature 1\n"
        "PARAMETER num_ctx 4096\n\n"
        "SYSTEM You are Mario from super mario bros, acting as an assistant.\n"
    )
    assert found == Modelfile(
        sources=("llama3.2",),
        parameters={"temperature": 1.0, "num_ctx": 4096},
        system="You are Mario from super mario bros, acting as an assistant.",
    )


def test_every_command_whatever_its_case() -> None:
    found = parse_modelfile(
        "from ./model.gguf\n"
        "FROM ./mmproj.gguf\n"
        "  Adapter ./lora.gguf\n"
        'TEMPLATE """{{ .System }}\n{{ .Prompt }}"""\n'
        "message user Is Toronto in Canada?\n"
        "MESSAGE assistant yes\n"
        'PARAMETER stop "<|im_start|>"\n'
        'parameter stop "User: "\n'
        'LICENSE """\nApache 2.0\n"""\n'
        "LICENSE MIT\n"
        "REQUIRES 0.14.0\nRENDERER qwen3\nPARSER qwen3\nDRAFT ./small.gguf\n"
        "PARAMETER low_vram true\n"
    )
    assert found.sources == ("./model.gguf", "./mmproj.gguf")
    assert found.adapters == ("./lora.gguf",)
    assert found.template == "{{ .System }}\n{{ .Prompt }}"
    assert found.messages == (PresetMessage("user", "Is Toronto in Canada?"), PresetMessage("assistant", "yes"))
    assert found.parameters == {"stop": ["<|im_start|>", "User: "]}
    assert found.licenses == ("\nApache 2.0\n", "MIT")
    assert found.ignored == (
        *("REQUIRES 0.14.0", "RENDERER qwen3", "PARSER qwen3", "DRAFT ./small.gguf", "PARAMETER low_vram"),
    )


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("be brief", "be brief"),
        ("  be brief \t", "be brief"),
        ('"be brief"', "be brief"),
        ('" be brief "', " be brief "),
        ('"""be brief"""', "be brief"),
        ('"""say "yes" or "no""""', 'say "yes" or "no"'),
        ('"one\n  two # no comment\n\nFROM three"', "one\n  two # no comment\n\nFROM three"),
        ('"""\n# a heading\n"""  ', "\n# a heading\n"),
        ('"a" and "b"', 'a" and "b'),
        ('You are called "Ada".', 'You are called "Ada".'),
        ('"You are called "Ada"."', 'You are called "Ada".'),
        ('"""You are called "Ada".\nBe brief."""', 'You are called "Ada".\nBe brief.'),
        ("“You are Ada.”", "“You are Ada.”"),
        ("x = 'y'", "x = 'y'"),
        ("C# it is", "C# it is"),
        ("'single' quotes are text", "'single' quotes are text"),
        ('""', ""),
        ("", ""),
    ],
)
def test_values(written: str, means: str) -> None:
    for ends in ("\n", "\r\n"):
        text = f"FROM x\nSYSTEM {written}\nPARAMETER seed 1".replace("\n", ends)
        found = parse_modelfile(text)
        assert (found.system, found.parameters) == (means, {"seed": 1})


def test_silence_is_not_the_empty_text() -> None:
    assert parse_modelfile("FROM x").system is None
    assert parse_modelfile('FROM x\nSYSTEM ""').system == ""


def test_the_last_of_several_counts() -> None:
    found = parse_modelfile("\ufeffFROM x\nSYSTEM a\nSYSTEM b\nPARAMETER seed 1\nPARAMETER seed 2\n")
    assert (found.system, found.parameters) == ("b", {"seed": 2})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no FROM"),
        ("SYSTEM hello", "has no FROM"),
        ("FROM", "line 1 of the Modelfile: FROM without a value"),
        ("FROM \n", "FROM without a value"),
        ("FROM x\nADAPTER  \n", "line 2 of the Modelfile: ADAPTER without a value"),
        ("FROM x\n\n# y\nFORM y", "line 4 of the Modelfile: unknown command 'FORM'; there are FROM, PARAMETER"),
        ("FROM x\n=1", "unknown command '=1'"),
        (
            'FROM="x.rkllm"\nSYSTEM="You are called "Ada"."',
            "line 1 of the Modelfile: FROM=… is RKLLAMA's form of a Modelfile",
        ),
        ("# mine\nexport FROM = x.rkllm", "line 2 of the Modelfile: FROM=… is RKLLAMA's form of a Modelfile"),
        ("from='x.rkllm'", "trilithon adopt FOLDER"),
        ("HUGGINGFACE_PATH=a/b\nFROM=x.rkllm", "HUGGINGFACE_PATH=… is RKLLAMA's form"),
        ("FROM x\nTEMPERATURE = '0.5'", "line 2 of the Modelfile: TEMPERATURE=… is RKLLAMA's form"),
        (
            'FROM x\nSYSTEM "Ada" is here\nPARAMETER stop "a"',
            'line 2 of the Modelfile: the text begins with " and ends after',
        ),
        ('FROM x\nSYSTEM """never\nends', "line 2 of the Modelfile: the text does not end"),
        ('FROM x\nSYSTEM "never', "line 2 of the Modelfile: the text does not end"),
        ("FROM x\nPARAMETER temperature", "PARAMETER without a value"),
        ("FROM x\nPARAMETER num_cxt 5", "unknown parameter 'num_cxt'; did you mean num_ctx?"),
        ("FROM x\nPARAMETER colour red", "unknown parameter 'colour'; there are"),
        ("FROM x\nPARAMETER num_ctx many", "parameter num_ctx = 'many' does not fit; write integer from 1"),
        ("FROM x\nPARAMETER num_ctx 4.5", "does not fit"),
        ("FROM x\nPARAMETER num_ctx " + "9" * 5000, "does not fit"),
        ("FROM x\nPARAMETER temperature nan", "does not fit"),
        ("FROM x\nPARAMETER top_p 1.5", "write number from 0 to 1"),
        ("FROM x\nPARAMETER use_mmap maybe", "write true or false"),
        ("FROM x\nMESSAGE tool hello", "MESSAGE has the unknown role 'tool'; write system, user, assistant"),
        ("FROM x\nMESSAGE user", "MESSAGE without a value"),
        ("FROM x\0", "this is not a Modelfile"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, said: str) -> None:
    assert said in refusal(text)


def test_ollamas_json_has_numbers_of_any_kind() -> None:
    assert check_parameter("num_ctx", 4096.0) == 4096
    assert check_parameter("temperature", 1) == 1.0
    assert check_parameter("stop", ["a", "b"]) == ["a", "b"]
    assert check_parameter("stop", "a") == ["a"]
    assert check_parameter("use_mmap", False) is False
    for name, value in (("num_ctx", True), ("num_ctx", 1e400), ("stop", [1]), ("temperature", "1"), ("seed", None)):
        with pytest.raises(ModelError, match="does not fit"):
            check_parameter(name, value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=60)
QUOTED = st.text(st.sampled_from('"" \n\tab#'), max_size=30)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 1e6),
        "num_ctx": st.integers(1, 10**15),
        "use_mmap": st.booleans(),
        "stop": st.lists(TEXTS | QUOTED, min_size=1, max_size=3),
    },
)


@given(
    PARAMETERS,
    TEXTS | QUOTED,
    TEXTS | QUOTED,
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS | QUOTED)),
)
@example({}, '"', '"""', [("user", '""')])
@example({}, "\n", ' "', [("user", "")])
def test_what_is_written_reads_the_same(
    parameters: dict[str, Any], system: str, template: str, messages: list[tuple[str, str]]
) -> None:
    model = manifest(
        parameters=parameters,
        system=system,
        template=template,
        messages=tuple(PresetMessage(*each) for each in messages),
    )
    try:
        written = to_modelfile(model)
    except ModelError as error:
        assert 'ends with """' in str(error)
        texts = [system, template, *(text for _, text in messages), *parameters.get("stop", [])]
        assert any('"""\n' in "\n".join(line.rstrip() for line in text.split("\n")) for text in texts)
        return
    found = parse_modelfile(written)
    assert found.sources == ("mario:latest",)
    assert found.parameters == parameters
    assert (found.system or "", found.template or "") == (system, template)
    assert found.messages == model.messages


@given(
    st.lists(
        st.sampled_from(
            ["FROM ", "SYSTEM ", "PARAMETER ", "stop ", "MESSAGE user ", '"', '"""', "\n", "\r", "x", " ", "#"]
        )
        | st.text(max_size=5),
        max_size=30,
    ).map("".join)
)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        found = parse_modelfile(text)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert all(found.sources)


def test_a_long_modelfile_takes_no_longer_than_its_length() -> None:
    many = "FROM x\n" + 'SYSTEM "a"\n' * 50_000 + 'SYSTEM "\n' + "b\n" * 200_000
    assert "does not end" in refusal(many)


@given(st.sampled_from(["seed", "stop", "temperature", "use_mmap", "top_k"]), st.text(max_size=30))
def test_any_value_fits_or_is_refused(name: str, text: str) -> None:
    try:
        value = read_parameter(name, text)
    except ModelError:
        return
    assert check_parameter(name, value) == value
