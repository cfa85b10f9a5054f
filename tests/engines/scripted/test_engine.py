import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.base import Placement, Settings
from trilithon.engines.scripted.engine import FAULTS, Script, ScriptedEngine
from trilithon.errors import UserError
from trilithon.models.files.model_file import ModelFile

FILE = ModelFile(
    path=Path("any.bin"),
    format="rkllm",
    name="any",
    architecture="none",
    quantization="none",
    size_bytes=0,
    sha256="0" * 64,
)


def placement(*options: tuple[str, str], context: int | None = None) -> Placement:
    settings = Settings(options=options, cpus=(0, 1), context=context, batch=64)
    return Placement(name="scripted/cpu", file=FILE, build=ScriptedEngine().builds()[0], unit="cpu", settings=settings)


def test_one_build_that_is_always_there():
    engine = ScriptedEngine()
    (build,) = engine.builds()
    assert (build.engine, build.name) == ("scripted", "builtin")
    assert build.units == ("cpu", "gpu", "npu")
    assert {"logprobs", "handover", "embeddings"} <= build.features
    assert engine.missing() == ""


def test_any_file_is_taken_and_options_are_judged():
    engine = ScriptedEngine()
    build = engine.builds()[0]
    assert engine.refusal(FILE, build, "npu", Settings(options=(("decode", "30"),))) == ""
    refusal = engine.refusal(FILE, build, "cpu", Settings(options=(("decode", "fast"),)))
    assert "decode = 'fast'" in refusal
    assert "\n" not in refusal


def test_launch_starts_the_child_with_the_script(tmp_path):
    launch = ScriptedEngine().launch(placement(("decode", "30"), ("text", "a b")), tmp_path)
    assert launch.argv[:4] == (sys.executable, "-P", "-m", "trilithon.engines.scripted.child.server")
    flags = dict(zip(launch.argv[4::2], launch.argv[5::2], strict=True))
    assert json.loads(flags["--script"]) == {"decode": "30", "text": "a b"}
    assert flags["--socket"] == str(launch.socket)
    assert flags["--context"] == "4096"
    assert flags["--batch"] == "64"
    assert Path(flags["--slot-save-path"]).parent == tmp_path
    assert launch.socket.parent == tmp_path
    assert launch.cpus == (0, 1)


def test_every_field_is_an_option():
    values = {
        "garbage": "loop",
        "hang_start": "yes",
        "load": "250ms",
        "wrong": "0.25",
        "noise": "0",
        "vary": "decode:9",
    }
    options = {field.name: values.get(field.name, "2") for field in fields(Script)}
    script = Script.parse(options.items())
    assert script.hang_start is True
    assert script.load == 0.25
    assert script.wrong == 0.25
    assert all(getattr(script, name) for name in FAULTS)


def test_without_faults_keeps_the_rest():
    script = Script.parse([("decode", "5"), *((name, "yes" if name == "hang_start" else "1") for name in FAULTS)])
    assert script.without_faults() == Script(decode=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sead": "1"}, "unknown option sead; did you mean seed?"),
        ({"decode": "0"}, "tokens per second"),
        ({"prefill": "nan"}, "tokens per second"),
        ({"prefill": "inf"}, "tokens per second"),
        ({"wrong": "1.5"}, "a fraction from 0 to 1"),
        ({"noise": "-1"}, "a fraction from 0 to 0.5"),
        ({"crash_after": "-1"}, "a number of tokens, 0 or more"),
        ({"crash_after": "3.5"}, "a number of tokens, 0 or more"),
        ({"exit_code": "256"}, "a number from 0 to 255"),
        ({"garbage": "rubbish"}, "one of loop, noise, empty"),
        ({"hang_start": "perhaps"}, "one of yes, no"),
        ({"text": " "}, "leave it out"),
        ({"load": "soon"}, "write 90"),
        ({"flaky": "2", "crash_after": "1"}, "give both"),
        ({"flaky": "2", "flaky_file": "starts"}, "add one, for example crash_after=3"),
        ({"flaky": "0", "flaky_file": "starts", "crash_after": "1"}, "1 or more"),
    ],
)
def test_bad_options_are_named_with_the_fix(options, said):
    with pytest.raises(UserError) as caught:
        Script.parse(options.items())
    message = str(caught.value)
    assert said in message
    assert message.startswith("scripted: ")
    assert "\n" not in message


NAMES = st.sampled_from([field.name for field in fields(Script)])


@given(st.lists(st.tuples(NAMES, st.text() | st.integers().map(str) | st.floats().map(str))))
def test_parse_gives_a_script_or_a_user_error(options):
    try:
        script = Script.parse(options)
    except UserError as error:
        assert str(error)
    else:
        assert script.decode > 0
        assert 0 <= script.wrong <= 1
