"""A model loaded by the RKLLM runtime, with its functions as Python methods.

All methods block, and one may run at a time. Only `cancel` may be called from another thread."""

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
from trilithon.engines.rkllm.child.binding import check_defaults, embedded_version, find_abi
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
from trilithon.errors import TaintedAnswer

__all__ = ["DecodeStep", "LoadFailed", "Perf", "RkllmRuntime", "RuntimeFailed"]


_LAST = (c.FINISH, c.ERROR)
"""After these a run has nothing left to abort."""


class RuntimeFailed(WireError):
    """A call of the runtime returned an error."""

    def __init__(self, reason: Reason):
        super().__init__(reason.status, reason.message, reason.kind)


class LoadFailed(Exception):
    """The model could not be loaded. `limit` is the model's context where a longer one was the only reason."""

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
    """The runtime's figures of one run: evaluated prompt tokens and decode steps, with their times."""

    prompt_n: int
    prompt_ms: float
    step_n: int
    step_ms: float


class _RuntimeCall:
    """The callback of one rkllm_run. It runs in the runtime's thread and must not raise."""

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
        except Exception as error:  # noqa: BLE001 (raised again when the runtime has returned)
            self.error = self.error or error
            self._runtime.cancelled = True
        if self._runtime.cancelled and state not in _LAST:
            self._runtime.cancel()  # again, because the first may have come too early for the runtime
        return c.GO_ON

    def _take(self, result: Any, state: int) -> None:
        layer = result.last_hidden_layer
        if layer.hidden_states and layer.num_tokens > 0 and layer.embd_size > 0:
            self.hidden = _copy(layer.hidden_states, layer.num_tokens, layer.embd_size)
        if self._runtime.abi.has_logits and result.logits.logits and result.logits.vocab_size > 0:
            self.logits = _copy(result.logits.logits, max(result.logits.num_tokens, 1), result.logits.vocab_size)
        if state in (c.NORMAL, c.WAITING) and self.hidden is None and self.logits is None:
            step = DecodeStep(result.token_id, result.text or b"", time.monotonic_ns())
            if not self._runtime.cancelled and not self._on_step(step):
                self._runtime.cancelled = True
        elif state == c.FINISH and self._runtime.abi.has_perf:
            self.perf = _perf(result.perf)


def _copy(pointer: Any, rows: int, columns: int) -> NDArray[np.float32]:
    """The runtime frees its arrays after the callback."""
    return np.ctypeslib.as_array(pointer, shape=(rows, columns)).astype(np.float32, copy=True)


def _perf(stat: Any) -> Perf | None:
    if stat.prefill_tokens <= 0 and stat.generate_tokens <= 0:  # the runtime did not set it
        return None
    return Perf(
        prompt_n=stat.prefill_tokens,
        prompt_ms=stat.prefill_time_ms,
        step_n=stat.generate_tokens,
        step_ms=stat.generate_time_ms,
    )


class RkllmRuntime:
    """Use `RkllmRuntime.open`. Every method raises RuntimeFailed, with the reason that the runtime printed, if any."""

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
        # C has no reference to the callback, and the runtime crashes if Python frees it.
        self._callback = abi.callback(self._on_result)
        self._kept: list[Any] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, library: Path, model: Path, options: LoadOptions) -> Iterator["RkllmRuntime"]:
        """Loads the model. Raises LoadFailed, RuntimeFailed (for the adapter), UnknownAbi or OSError."""
        version = embedded_version(library)
        abi = find_abi(options.abi or version)
        with ExitStack() as stack:
            log = stack.enter_context(contextlib.closing(NativeLog()))
            native = ctypes.CDLL(str(library))
            abi.declare(native)
            if version not in abi.versions and not options.abi:
                check_defaults(abi, native, version)
            runtime = cls(native, abi, version, log, options)
            runtime._load(model, GREEDY)
            stack.callback(runtime._unload)
            runtime._load_adapter()
            yield runtime

    # -- loading

    def _load(self, model: Path, sampling: RkllmSampling) -> None:
        self._model, self.sampling = model, sampling
        self._log.mark()
        param = self._library.rkllm_createDefaultParam().param
        fill_param(param, model, self.context, self.options, sampling)
        handle = c_void_p()  # after a load that failed, its value must not be used
        if self.abi.callbacks_struct is not None:
            callbacks = self.abi.callbacks_struct(result=self._callback)
            self._kept = [param, callbacks]
            status = self._library.rkllm_init(ctypes.byref(handle), ctypes.byref(param), ctypes.byref(callbacks))
        else:
            self._kept = [param]
            status = self._library.rkllm_init(ctypes.byref(handle), ctypes.byref(param), self._callback)
        text = self._log.text()
        if status != 0 or not handle.value:  # older runtimes return 0 without a handle (rknn-llm#156)
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
            self._unload()  # otherwise the next request would run without the adapter
            raise

    def _unload(self) -> None:
        handle, self._handle = self._handle, c_void_p()
        if handle.value:
            self._library.rkllm_destroy(handle)

    # -- running

    @contextlib.contextmanager
    def trusted(self) -> Iterator[None]:
        """Raises TaintedAnswer where the runtime, or a library beside it, printed an error in the block and returned
        success. Keys and values that were computed then are not used again."""
        errors = self._log.errors()
        try:
            yield
        finally:
            tainted = errors.first()
            if tainted:
                self._forget()
        if tainted:
            reason = explain(tainted)
            raise TaintedAnswer(tainted, reason.message if reason else "")

    def _forget(self) -> None:
        if self.abi.clear_arguments:
            self.clear()
        else:
            self._unload()  # the next request loads the model again

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
        """Generates up to `limit` tokens; `on_step` is called with each, and ends the run by returning False. The
        prompt's keys and values are saved to the file `save`.

        Gives None where the runtime gives no figures: before 1.2.1, and often for cancelled runs."""
        self._use(sampling)
        count = 0

        def counted(step: DecodeStep) -> bool:
            nonlocal count
            count += 1
            if count > limit:  # a runtime without a limit gives one more token after it was stopped
                return False
            return on_step(step) and (count < limit or self.abi.has_sampling)

        return self._run(c.GENERATE, prompt, counted, limit, sampling, thinking=thinking, save=save).perf

    def logits(self, tokens: Sequence[int]) -> tuple[NDArray[np.float32], Perf | None]:
        """The scores of the next token after `tokens`, of the shape (vocabulary,), and the figures of the run."""
        call = self._inspect(c.GET_LOGITS, tokens)
        if call.logits is None:
            raise self._failure("give the logits")
        return call.logits[-1], call.perf

    def hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The last layer's states, of the shape (tokens, size of the model)."""
        call = self._inspect(c.GET_LAST_HIDDEN_LAYER, tokens)
        if call.hidden is None:
            raise self._failure("give the hidden states")
        return call.hidden

    def clear(self) -> None:
        """Empties the KV cache, so that the next run evaluates its whole prompt. 1.1.4 has no function for this."""
        self._use(self.sampling)
        self._log.mark()
        if self.abi.clear_arguments == 2:
            self._checked(self._library.rkllm_clear_kv_cache(self._handle, 0), "clear its cache")
        elif self.abi.clear_arguments:
            self._checked(self._library.rkllm_clear_kv_cache(self._handle, 0, None, None), "clear its cache")

    def load_cache(self, path: Path) -> None:
        """Loads keys and values that `generate` saved; those loaded before are released."""
        self._use(self.sampling)
        self._log.mark()
        self._checked(self._library.rkllm_release_prompt_cache(self._handle), "release its prompt cache")
        self._checked(self._library.rkllm_load_prompt_cache(self._handle, bytes(path)), "load the prompt cache")

    def is_running(self) -> bool:
        return bool(self._library.rkllm_is_running(self._handle) == self.abi.running)

    def renew(self) -> None:
        """After a cancellation: allows the next run."""
        self.cancelled = False

    def cancel(self) -> None:
        """Ends the current run within one token; does nothing when there is none."""
        self.cancelled = True
        # Only a run is aborted: without one, the abort might end the next run, and during a load or another call the
        # runtime does not expect it. Where the lock is taken, another thread aborts already.
        if self._aborting.acquire(blocking=False):
            try:
                if self._call is not None:
                    self._library.rkllm_abort(self._handle)
            finally:
                self._aborting.release()

    def _use(self, sampling: RkllmSampling) -> None:
        """Before 1.3.0 the sampling parameters are set by the load, so that the model is loaded again for others."""
        if self._handle.value and (self.abi.has_sampling or sampling == self.sampling):
            return
        if self._handle.value:
            self._unload()
        try:
            self._load(self._model, sampling)
        except LoadFailed as error:
            raise RuntimeFailed(Reason(f"the model could not be loaded again: {error}")) from error
        self._load_adapter()

    def _inspect(self, mode: int, tokens: Sequence[int]) -> _RuntimeCall:
        """A run that gives outputs of layers, and generates nothing."""
        self._use(self.sampling)
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
        filled = fill_input(self.abi, prompt, thinking)
        infer = fill_infer_param(
            self.abi, mode, limit=limit, sampling=sampling, adapter=bool(self.options.lora), save=save
        )
        call = _RuntimeCall(self, on_step)
        if self.cancelled:
            return call
        self._log.mark()
        self._call = call
        try:
            status = self._library.rkllm_run(
                self._handle, ctypes.byref(filled.struct), ctypes.byref(infer.struct), None
            )
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
        return RuntimeFailed(reason or Reason(f"the NPU runtime did not {what}, and gave no reason; see its log"))


def _load_failure(status: int, log: str) -> LoadFailed:
    reason = explain(log)
    if reason is not None:
        return LoadFailed(reason.message, context_limit(log))
    # rknn-llm#287: it returns -1 without a message when the device may not be opened.
    result = f"returned {status}" if status else "reported success, and gave no handle"
    fix = "most often its device may not be opened: `trilithon doctor`"
    return LoadFailed(f"the NPU runtime {result} without a reason; {fix}")
