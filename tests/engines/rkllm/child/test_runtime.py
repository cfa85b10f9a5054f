"""The RKLLM runtime's face in Python, in this very process, on the stand-in of each interface."""

import contextlib
import threading

import numpy as np
import pytest

from trilithon.engines.rkllm.child.answering import Answering, RkllmRequest
from trilithon.engines.rkllm.child.binding import UnknownAbi
from trilithon.engines.rkllm.child.log import context_limit, explain, load_facts
from trilithon.engines.rkllm.child.runtime import RkllmRuntime, RuntimeFailed
from trilithon.engines.rkllm.child.structs import Picture, RkllmSampling
from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.rkllm.options import LoadOptions
from trilithon.errors import UserError

VERSIONS = ("1.1.4", "1.2.0", "1.2.3", "1.3.0")
PROMPT = [byte + 3 for byte in b"[[" + b"x" * 60 + b"]]"]


@pytest.fixture
def opened(standin, tmp_path):
    with contextlib.ExitStack() as stack:

        def open_one(version, **script):
            model = tmp_path / "model.rkllm"
            model.write_text("x\n#standin\n" + "".join(f"{name}={value}\n" for name, value in script.items()))
            return stack.enter_context(RkllmRuntime.open(standin(version), model, LoadOptions(context=512)))

        yield open_one


@pytest.mark.parametrize("version", VERSIONS)
def test_a_step_can_end_the_run(opened, version):
    runtime, steps = opened(version), []
    runtime.generate(PROMPT, limit=50, on_step=lambda step: steps.append(step) or len(steps) < 4)
    assert len(steps) == 4
    assert not runtime.is_running()
    runtime.renew()
    runtime.generate(PROMPT, limit=5, on_step=lambda step: steps.append(step) or True)
    assert len(steps) == 9
    assert b"".join(step.text for step in steps) == b"x" * 9


@pytest.mark.parametrize("version", VERSIONS)
def test_another_thread_ends_the_run_and_sees_it_running(opened, version):
    runtime, seen, first = opened(version, decode_us=20_000), [], threading.Event()

    def cancel():
        first.wait(60)
        seen.append(runtime.is_running())
        runtime.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    steps = []
    runtime.generate(PROMPT, limit=50, on_step=lambda step: first.set() or steps.append(step) or True)
    thread.join()
    assert (len(steps) <= 3, seen, runtime.is_running()) == (True, [True], False)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_abort_never_hits_the_next_run(opened, version):
    # Whether the runtime forgets an abort that came when nothing was left to abort is not documented.
    runtime = opened(version, sticky=1)
    for end_at in (3, 1, 50):
        assert _steps(runtime, end_at) == min(5, end_at)
        runtime.cancel()
        runtime.renew()


def _steps(runtime, end_at):
    steps = []
    runtime.generate(PROMPT, limit=5, on_step=lambda step: steps.append(step) or len(steps) < end_at)
    return len(steps)


def test_nobody_aborts_while_the_model_is_loaded_again(opened, tmp_path, monkeypatch):
    record = tmp_path / "record"
    monkeypatch.setenv("STANDIN_RECORD", str(record))
    runtime = opened("1.2.3", load_ms=100)
    reload = threading.Thread(
        target=lambda: runtime.generate(PROMPT, limit=5, on_step=lambda step: True, sampling=RkllmSampling(top_k=5))
    )
    reload.start()
    while reload.is_alive():
        runtime.cancel()
        reload.join(0.01)
    assert '"violation"' not in record.read_text()
    runtime.renew()
    runtime.generate(PROMPT, limit=1, on_step=lambda step: step.text == b"x", sampling=RkllmSampling(top_k=5))
    assert [line for line in record.read_text().splitlines() if "violation" in line] == []


def test_what_a_failed_load_leaves_behind_is_not_used(opened, tmp_path, monkeypatch):
    record = tmp_path / "record"
    monkeypatch.setenv("STANDIN_RECORD", str(record))
    runtime, warm = opened("1.2.3"), RkllmSampling(top_k=5)
    monkeypatch.setenv("STANDIN_SCRIPT", "fail=memory")
    for _ in range(2):
        with pytest.raises(RuntimeFailed, match="could not be loaded again"):
            runtime.generate(PROMPT, limit=1, on_step=lambda step: True, sampling=warm)
    monkeypatch.delenv("STANDIN_SCRIPT")
    steps = []
    runtime.generate(PROMPT, limit=1, on_step=lambda step: steps.append(step) or True, sampling=warm)
    assert (len(steps), "violation" in record.read_text()) == (1, False)


def test_a_library_that_lacks_a_function_is_told(tmp_path, standin):
    opening = RkllmRuntime.open(standin("1.1.4"), tmp_path / "m.rkllm", LoadOptions(abi="1.2.3"))
    with pytest.raises(UnknownAbi, match=r"lacks a function of RKLLM 1\.2\.3: rkllm_.*; take"), opening:
        pass


def test_what_was_cancelled_before_it_began_never_begins(opened):
    runtime, steps = opened("1.3.0"), []
    runtime.cancel()
    assert runtime.generate(PROMPT, limit=5, on_step=lambda step: steps.append(step) or True) is None
    assert steps == []


@pytest.mark.parametrize("version", VERSIONS)
def test_an_error_in_the_callback_ends_the_run_and_is_raised_after_it(opened, version):
    runtime = opened(version)
    with pytest.raises(ZeroDivisionError):
        runtime.generate(PROMPT, limit=50, on_step=lambda step: bool(1 // 0))
    runtime.renew()
    assert (
        runtime.generate(PROMPT, limit=2, on_step=lambda step: True, sampling=RkllmSampling()) is not None
        or version < "1.2.1"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_runtime_shows_is_copied(opened, version):
    runtime = opened(version)
    hidden = runtime.hidden([5, 6, 7])
    assert hidden.shape == (3, 16)
    assert np.isfinite(hidden).all()  # the stand-in overwrites what it showed with NaN
    if version == "1.1.4":
        return
    scores, _ = runtime.logits([5, 6, 7])
    assert (scores.shape, bool(np.isfinite(scores).all())) == ((320,), True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_units_of_its_figures(opened, version):
    runtime = opened(version, prefill_us=500, decode_us=4000)
    perf = runtime.generate(PROMPT, limit=11, on_step=lambda step: True)
    assert (perf is not None) == (version in ("1.2.3", "1.3.0"))
    if perf is None:
        return
    assert (perf.prompt_n, perf.step_n) == (len(PROMPT), 10)
    assert 30 <= perf.prompt_ms < 3000
    assert 40 <= perf.step_ms < 4000


@pytest.mark.parametrize("version", ["1.2.0", "1.2.3", "1.3.0"])
def test_a_picture_needs_its_tag_and_its_number(opened, version):
    runtime, steps = opened(version), []
    one = Picture(text="<image>what? [[a stone]]", embeddings=np.ones((1, 4, 16), np.float32), width=28, height=28)
    runtime.generate(one, limit=50, on_step=lambda step: steps.append(step.text) or True)
    assert b"".join(steps) == b"a stone"
    with pytest.raises(RuntimeFailed, match=r"gave no reason|<image> tag"):
        runtime.generate(
            Picture(text="what?", embeddings=one.embeddings, width=28, height=28), limit=5, on_step=lambda step: True
        )
    two = Picture(text="<image><image>[[x]]", embeddings=np.ones((2, 4, 16), np.float32), width=28, height=28)
    with pytest.raises(UserError, match="one picture") if version == "1.2.0" else contextlib.nullcontext():
        runtime.generate(two, limit=5, on_step=lambda step: True)


def test_an_answer_takes_the_time_of_its_steps(opened, monkeypatch):
    runtime, seen = opened("1.3.0", decode_us=2000), []
    original = runtime.generate
    monkeypatch.setattr(runtime, "generate", lambda *one, **more: seen.append(original(*one, **more)) or seen[-1])
    answering = Answering(
        runtime, ModelText(None, None, ""), frozenset(), RkllmRequest(prompt=PROMPT, limit=11), lambda given: None, []
    )
    timings = answering.run().timings
    assert (timings.prompt_n, timings.prompt_ms) == (len(PROMPT), seen[0].prompt_ms)
    assert (timings.predicted_n, timings.predicted_ms) == (11, pytest.approx(seen[0].step_ms))  # ten steps


def test_a_model_that_only_ends_is_not_asked_for_ever(opened):
    runtime = opened("1.3.0", answer="")
    request = RkllmRequest(prompt=[5, 5], limit=9, ignore_eos=True)
    answering = Answering(runtime, ModelText(None, None, ""), frozenset(), request, lambda given: None, [])
    with pytest.raises(RuntimeFailed, match="ends again and again"):
        answering.run()


LINE = (
    "I rkllm: rkllm-toolkit version: 1.2.1, max_context_limit: 4096, npu_core_num: 3, "
    "target_platform: RK3588, model_dtype: W8A8_G128"
)


def test_the_facts_of_a_load():
    assert load_facts(f"x\n{LINE}\ny") == {
        "toolkit": "1.2.1",
        "context": "4096",
        "cores": "3",
        "platform": "RK3588",
        "dtype": "W8A8_G128",
    }
    assert load_facts("nothing") == {}


def test_the_last_reason_counts():
    log = "E rkllm: invalid rkllm model!\nE rkllm: failed to open rknpu module\nE rkllm: rkllm_init failed"
    assert "driver cannot be opened" in explain(log).message
    assert explain("all is well") is None
    assert context_limit("max_context[8192] must be less than the model's max_context_limit[4096]") == 4096
