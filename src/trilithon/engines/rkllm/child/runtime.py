"""One model loaded by the RKLLM runtime: what can be asked of it, in Python's terms.

Everything here blocks; only `cancel` may be called from another thread. One run at a time."""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ctypes import c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilithon.engines.rkllm.child import binding as c
from trilithon.engines.rkllm.child.binding import embedded_version, find_abi
from trilithon.engines.rkllm.child.log import NativeLog, Reason, context_limit, explain, load_facts
from trilithon.engines.rkllm.child.structs import (
    ADAPTER,
    GREEDY,
    Prompt,
    RkllmSampling,
    fill_infer_param,
    fill_input,
    fill_param,
)
from trilithon.engines.rkllm.options import CONTEXT_STEP, LoadOptions
from trilithon.engines.wire.http import WireError

__all__ = ["DecodeStep", "LoadFailed", "Perf", "RkllmRuntime", "RuntimeFailed"]


_LAST = (c.FINISH, c.ERROR)
"""After these a run has nothing left to abort."""


class RuntimeFailed(WireError):
    """The runtime refused a call or failed in it."""

    def __init__(self, reason: Reason):
        super().__init__(reason.status, reason.message, reason.kind)


class LoadFailed(Exception):
    """The model could not be loaded. `limit` is the model's context when only that was in the way."""

    def __init__(self, message: str, limit: int | None = None):
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One generated token. `text` may be a part of a character, or empty while one is not complete."""

    token: int
    text: bytes
    at_ns: int


@dataclass(frozen=True, slots=True)
class Perf:
    """The runtime's own figures of one run: tokens that it evaluated and the decode steps that it timed."""

    prompt_n: int
    prompt_ms: float
    step_n: int
    step_ms: float


class _RuntimeCall:
    """One rkllm_run, seen from its callback, which runs in the runtime's thread and must never raise."""

    def __init__(self, runtime: "RkllmRuntime", on_step: Callable[[DecodeStep], bool]):
        self._runtime = runtime
        self._on_step = on_step
        self.perf: Perf | None = None
        self.failed = False
        self.error: Exception | None = None
        self.hidden: NDArray[np.float32] | None = None
        self.logits: NDArray[np.float32] | None = None

    def __call__(self, address: int | None, state: int) -> int:
        try:
            if address:
                self._take(self._runtime.abi.result.from_address(address), state)
            self.failed |= state == c.ERROR
        except Exception as error:  # noqa: BLE001 (it is raised again once the runtime has returned)
            self.error = self.error or error
            self._runtime.cancelled = True
        if self._runtime.cancelled and state not in _LAST:
            self._runtime.cancel()  # also again, in case that the first came too early for the runtime
        return c.GO_ON

    def _take(self, result: Any, state: int) -> None:
        layer = result.last_hidden_layer
        if layer.hidden_states and layer.num_tokens > 0 and layer.embd_size > 0:
            self.hidden = _copied(layer.hidden_states, layer.num_tokens, layer.embd_size)
        if self._runtime.abi.has_logits and result.logits.logits and result.logits.vocab_size > 0:
            self.logits = _copied(result.logits.logits, max(result.logits.num_tokens, 1), result.logits.vocab_size)
        if state in (c.NORMAL, c.WAITING) and self.hidden is None and self.logits is None:
            step = DecodeStep(result.token_id, result.text or b"", time.monotonic_ns())
            if not self._runtime.cancelled and not self._on_step(step):
                self._runtime.cancelled = True
        elif state == c.FINISH and self._runtime.abi.has_perf:
            self.perf = _perf(result.perf)


def _copied(pointer: Any, rows: int, columns: int) -> NDArray[np.float32]:
    """The runtime frees what it shows after the callback."""
    return np.ctypeslib.as_array(pointer, shape=(rows, columns)).astype(np.float32, copy=True)


def _perf(stat: Any) -> Perf | None:
    if stat.prefill_tokens <= 0 and stat.generate_tokens <= 0:  # not filled in
        return None
    return Perf(
        prompt_n=stat.prefill_tokens,
        prompt_ms=stat.prefill_time_ms,
        step_n=stat.generate_tokens,
        step_ms=stat.generate_time_ms,
    )


class RkllmRuntime:
    """Use `RkllmRuntime.open`. Every call raises RuntimeFailed, with the runtime's own reason where it printed one."""

    def __init__(self, library: ctypes.CDLL, abi: c.Abi, version: str, log: NativeLog, options: LoadOptions):
        self.abi = abi
        self.version = version
        self.options = options
        self.sampling = GREEDY
        self.facts: dict[str, str] = {}
        self.context = options.context // CONTEXT_STEP * CONTEXT_STEP
        self.cancelled = False
        self._library = library
        self._log = log
        self._handle = c_void_p()
        self._aborting = threading.Lock()
        self._call: _RuntimeCall | None = None
        # Kept here: C holds no reference, and a callback that is collected crashes the runtime.
        self._callback = abi.callback(self._on_result)
        self._kept: list[Any] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, library: Path, model: Path, options: LoadOptions) -> Iterator["RkllmRuntime"]:
        """Load the model. Raises LoadFailed, RuntimeFailed (for the adapter), UnknownAbi or OSError."""
        version = embedded_version(library)
        abi = find_abi(options.abi or version)
        with ExitStack() as stack:
            log = stack.enter_context(contextlib.closing(NativeLog()))
            native = ctypes.CDLL(str(library))
            abi.declare(native)
            runtime = cls(native, abi, version, log, options)
            runtime._load(model, GREEDY)
            stack.callback(runtime._unload)
            runtime._load_adapter()
            yield runtime

    # -- loading

    def _load(self, model: Path, sampling: RkllmSampling) -> None:
        self._model, self.sampling = model, sampling
        self._log.mark()
        param = self._library.rkllm_createDefaultParam()
        fill_param(param, model, self.context, self.options, sampling)
        handle = c_void_p()  # what a load that failed leaves in it is not to be touched
        if self.abi.callbacks_struct is not None:
            callbacks = self.abi.callbacks_struct(result=self._callback)
            self._kept = [param, callbacks]
            status = self._library.rkllm_init(ctypes.byref(handle), ctypes.byref(param), ctypes.byref(callbacks))
        else:
            self._kept = [param]
            status = self._library.rkllm_init(ctypes.byref(handle), ctypes.byref(param), self._callback)
        text = self._log.text()
        if status != 0 or not handle.value:  # older ones return 0 with no handle (rknn-llm#156)
            raise _load_failure(status, text)
        self._handle, self.facts = handle, load_facts(text)

    def _load_adapter(self) -> None:
        if not self.options.lora:
            return
        adapter = c.STRUCTS["LoraAdapter"](os.fsencode(self.options.lora), ADAPTER, self.options.lora_scale)
        self._kept.append(adapter)
        try:
            self._checked(self._library.rkllm_load_lora(self._handle, ctypes.byref(adapter)), "load the LoRA adapter")
        except RuntimeFailed:
            self._unload()  # or the next request would run without it
            raise

    def _unload(self) -> None:
        handle, self._handle = self._handle, c_void_p()
        if handle.value:
            self._library.rkllm_destroy(handle)

    # -- running

    def generate(
        self,
        prompt: Prompt,
        *,
        limit: int,
        on_step: Callable[[DecodeStep], bool],
        sampling: RkllmSampling = GREEDY,
        thinking: bool = True,
        save: Path | None = None,
    ) -> Perf | None:
        """Generate up to `limit` tokens; `on_step` is told each, and ends the run by answering False. `save` keeps
        the prompt's keys and values in that file.

        The figures are None where the runtime gave none: before 1.2.1, and often for a run that was ended."""
        self._take_up(sampling)
        given = 0

        def counted(step: DecodeStep) -> bool:
            nonlocal given
            given += 1
            if given > limit:  # a runtime without a limit of its own was told to stop, and gave one more
                return False
            return on_step(step) and (given < limit or self.abi.has_sampling)

        return self._run(c.GENERATE, prompt, counted, limit, sampling, thinking=thinking, save=save).perf

    def logits(self, tokens: Sequence[int]) -> tuple[NDArray[np.float32], Perf | None]:
        """The scores of what may follow `tokens`, one for each token of the vocabulary."""
        call = self._look(c.GET_LOGITS, tokens)
        if call.logits is None:
            raise self._failure("give the logits")
        return call.logits[-1], call.perf

    def hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The last layer's states, one row per token."""
        call = self._look(c.GET_LAST_HIDDEN_LAYER, tokens)
        if call.hidden is None:
            raise self._failure("give the hidden states")
        return call.hidden

    def clear(self) -> None:
        """Forget the keys and values, so that the next run evaluates its whole prompt. 1.1.4 has no call for it."""
        self._take_up(self.sampling)
        self._log.mark()
        if self.abi.clear_arguments == 2:
            self._checked(self._library.rkllm_clear_kv_cache(self._handle, 0), "clear its cache")
        elif self.abi.clear_arguments:
            self._checked(self._library.rkllm_clear_kv_cache(self._handle, 0, None, None), "clear its cache")

    def load_cache(self, path: Path) -> None:
        """Take up keys and values that `generate` saved. What was loaded before is released first."""
        self._take_up(self.sampling)
        self._log.mark()
        self._checked(self._library.rkllm_release_prompt_cache(self._handle), "release its prompt cache")
        self._checked(self._library.rkllm_load_prompt_cache(self._handle, bytes(path)), "load the prompt cache")

    def is_running(self) -> bool:
        return bool(self._library.rkllm_is_running(self._handle) == self.abi.running)

    def renew(self) -> None:
        """What was cancelled is over: the next run may begin."""
        self.cancelled = False

    def cancel(self) -> None:
        """End the run under way within one token; harmless when there is none."""
        self.cancelled = True
        # Only a run is aborted: an abort of nothing might end the next one, and one in a load or another call is
        # nothing that the runtime expects. Whoever finds the lock taken may go: the other one aborts already.
        if self._aborting.acquire(blocking=False):
            try:
                if self._call is not None:
                    self._library.rkllm_abort(self._handle)
            finally:
                self._aborting.release()

    def _take_up(self, sampling: RkllmSampling) -> None:
        """Before 1.3.0 the sampling parameters belong to the load, so others cost loading the model again."""
        if self._handle.value and (self.abi.has_sampling or sampling == self.sampling):
            return
        if self._handle.value:
            self._unload()
        try:
            self._load(self._model, sampling)
        except LoadFailed as error:
            raise RuntimeFailed(Reason(f"the model could not be loaded again: {error}")) from error
        self._load_adapter()

    def _look(self, mode: int, tokens: Sequence[int]) -> _RuntimeCall:
        """A run that generates nothing, but shows what the layers give."""
        self._take_up(self.sampling)
        return self._run(mode, tokens, lambda _: True, 1, GREEDY)

    def _run(
        self,
        mode: int,
        prompt: Prompt,
        on_step: Callable[[DecodeStep], bool],
        limit: int,
        sampling: RkllmSampling,
        *,
        thinking: bool = False,
        save: Path | None = None,
    ) -> _RuntimeCall:
        given = fill_input(self.abi, prompt, thinking)
        infer = fill_infer_param(
            self.abi, mode, limit=limit, sampling=sampling, adapter=bool(self.options.lora), save=save
        )
        call = _RuntimeCall(self, on_step)
        if self.cancelled:
            return call
        self._log.mark()
        self._call = call
        try:
            status = self._library.rkllm_run(self._handle, ctypes.byref(given.struct), ctypes.byref(infer.struct), None)
        finally:
            with self._aborting:
                self._call = None
        if call.error is not None:
            raise call.error
        if (status != 0 or call.failed) and not self.cancelled:
            raise self._failure("answer")
        return call

    def _on_result(self, address: int | None, _: int | None, state: int) -> int:
        call = self._call
        return call(address, state) if call is not None else c.GO_ON

    def _checked(self, status: int, what: str) -> None:
        if status != 0:
            raise self._failure(what)

    def _failure(self, what: str) -> RuntimeFailed:
        reason = explain(self._log.text())
        return RuntimeFailed(
            reason or Reason(f"the NPU runtime did not {what}, and gave no reason; its log may say more")
        )


def _load_failure(status: int, log: str) -> LoadFailed:
    reason = explain(log)
    if reason is not None:
        return LoadFailed(reason.message, context_limit(log))
    # rknn-llm#287: it returns -1 without a word when the device may not be opened.
    said = f"returned {status}" if status else "said that it worked, and gave no handle"
    fix = "most often its device may not be opened: `trilithon doctor`"
    return LoadFailed(f"the NPU runtime {said} without a reason; {fix}")
