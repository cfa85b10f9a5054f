"""What a user sees when the RKLLM runtime does not start: each of its messages, crashes, and runtimes not known."""

import pytest

from trilithon.board.libraries import KNOWN_RKLLM_VERSIONS
from trilithon.engines.rkllm.child.binding import ABIS, UnknownAbi, embedded_version, find_abi
from trilithon.engines.rkllm.options import LoadOptions
from trilithon.errors import UserError
from trilithon.runtime.diagnostics import diagnose


def _diagnosis(code, log):
    return diagnose(code, log, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)


# Beside what the user sees of each (test_rkllm_messages.py): the last line of the server itself.
@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [
        ("target", "model converted for another chip", "get or convert the model for this chip"),
        ("silent", "exit code 3", "returned -1 without a reason; most often its device may not be opened"),
        ("null", "exit code 3", "reported success, and gave no handle"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("platform", "this chip is not one that the NPU runtime takes", "run the model on another unit"),
                ("unknown", "the NPU runtime cannot tell the chip", "the vendor's, 0.9.8 or newer"),
                ("runtime", "NPU runtime older than the model", "install librkllmrt.so of the toolkit's version"),
                ("old", "model too old for the NPU runtime", "convert the model again"),
                (
                    "magic",
                    "not an RKLLM model, or one for another generation of the NPU runtime",
                    "take a file that was converted",
                ),
                ("driver", "NPU driver cannot be opened", "`trilithon doctor`"),
                ("memory", "out of NPU memory (IOMMU domains full)", "choose a smaller model or another domain"),
                ("files", "too many open files", "ulimit -n 102400"),
            )
        ),
    ],
)
def test_each_message_of_a_load_has_its_cause_and_fix(fresh_rkllm, fault, cause, words):
    code, log = fresh_rkllm(ready=False, fail=fault).end()
    assert code == 3
    assert words in log.splitlines()[-1]
    assert _diagnosis(code, log).cause == cause


def test_a_crash_in_the_load_is_one_childs_end(fresh_rkllm):
    code, log = fresh_rkllm(ready=False, fail="segfault").end()
    assert code == -11
    assert _diagnosis(code, log).signal == "segmentation fault (SIGSEGV)"


@pytest.mark.parametrize("version", ["1.1.4", "1.3.0"])
def test_a_context_beyond_the_models_is_cut_in_a_new_process_image(fresh_rkllm, version):
    # `once`: a second load in one process crashes, as 1.3.0 does.
    server = fresh_rkllm(version, options={"context": 4096}, limit=500, once=1)
    assert server.http.get("/props").json()["default_generation_settings"]["n_ctx"] == 480
    assert "note: the context is cut to 500 tokens" in server.log.read_text()
    assert [load["context"] for load in server.record("init", whole=True)] == [4096, 480]


def test_a_missing_model_and_a_missing_library(fresh_rkllm, tmp_path):
    server = fresh_rkllm(ready=False, options={"lora": str(tmp_path / "none")})
    code, log = server.end()
    assert (code, "the LoRA adapter cannot be opened; check its path" in log) == (3, True)


def test_a_models_file_that_is_damaged_is_named(fresh_rkllm, tmp_path):
    (tmp_path / "generation_config.json").write_text("[1]")
    code, log = fresh_rkllm(ready=False, files=tmp_path).end()
    assert (code, "generation_config.json cannot be used: it is not a JSON object; fetch it again" in log) == (2, True)


def test_options_that_are_wrong_are_named(fresh_rkllm):
    code, log = fresh_rkllm(ready=False, options={"contxt": 5}).end()
    assert (code, "unknown option contxt; there are context, " in log) == (2, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be a JSON object"),
        ("{", "is not JSON"),
        ('{"context": "many"}', "option context = 'many' is not valid; it must be a whole number"),
        ('{"context": true}', "must be a whole number"),
        ('{"context": 31}', "must be 32 or more"),
        ('{"domain": 16}', "must be from 0 to 15"),
        ('{"cpu_mask": 0}', "must name CPUs"),
        ('{"embed_flash": 1}', "must be true or false"),
    ],
)
def test_options_that_do_not_fit(text, words):
    with pytest.raises(UserError, match=words):
        LoadOptions.parse(text)


def test_options_go_there_and_back():
    options = LoadOptions(context=512, cpu_mask=0xF0, embed_flash=False, lora="x.rkllm", lora_scale=0.5)
    assert LoadOptions.parse(options.json()) == options
    assert LoadOptions().json() == "{}"


def test_the_version_is_read_from_the_librarys_bytes(standin, tmp_path):
    for abi in ABIS:
        assert find_abi(embedded_version(standin(abi.name))) is abi
    assert find_abi("1.2.1") is find_abi("1.2.3")
    other = tmp_path / "libother.so"
    for content in (b"", b"\x7fELF" + bytes(5000)):
        other.write_bytes(content)
        with pytest.raises(UnknownAbi, match="states no RKLLM version"):
            embedded_version(other)


def test_a_runtime_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(UnknownAbi, match=r"1\.1\.4, 1\.2\.0, 1\.2\.1, 1\.2\.2, 1\.2\.3, 1\.3\.0.*the option abi"):
        find_abi("1.4.0")


@pytest.mark.parametrize(("version", "release"), [("1.3.1", "1.3.0"), ("1.3.17b2", "1.3.0"), ("1.2.4", "1.2.3")])
def test_a_patch_release_has_the_newest_interface_of_its_minor_series(version, release):
    assert find_abi(version) is find_abi(release)


@pytest.mark.parametrize("version", ["1.1.3", "1.2.1b1", "1.3", "1.31.0", "2.3.1", "", "x"])
def test_other_releases_are_not_known(version):
    with pytest.raises(UnknownAbi):
        find_abi(version)


@pytest.mark.parametrize(("version", "release"), [("1.3.1", "1.3.0"), ("1.2.4", "1.2.3"), ("1.3.5", "1.3.0")])
def test_a_patch_release_answers(fresh_rkllm, version, release):
    """1.3.5 has new fields at the end, which the runtime reads too: they are those that it returned."""
    server = fresh_rkllm(version)
    props = server.http.get("/props").json()
    assert (props["build_info"], props["rkllm"]["abi"]) == (f"rkllm-{version}", release)
    expected = fresh_rkllm(release).complete(n_predict=4).json()["content"]
    assert server.complete(n_predict=4).json()["content"] == expected
    (load,) = server.record("init", whole=True)
    assert (load["context"], load["n_keep"], load["cpus"]) == (1024, -1, 4)
    assert ("a5" * 512 in load["bytes"]) == (version == "1.3.5")


@pytest.mark.parametrize(
    ("version", "shifted"), [("1.3.2", "top_k reads 0, not 40"), ("1.3.3", "enabled_cpus_num"), ("1.3.4", "n_batch")]
)
def test_a_patch_release_with_a_new_field_is_refused_before_it_is_started(fresh_rkllm, version, shifted):
    server = fresh_rkllm(version, ready=False)
    code, log = server.end()
    assert code == 3
    assert f"RKLLM runtime {version} is not laid out like 1.3.0: its default {shifted}" in log
    assert not (server.folder / "record").exists()


def test_the_doctor_knows_the_same_versions() -> None:
    assert {version for abi in ABIS for version in abi.versions} == KNOWN_RKLLM_VERSIONS
