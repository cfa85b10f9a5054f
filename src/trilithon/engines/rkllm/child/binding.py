"""The C interface of the RKLLM runtime (librkllmrt.so), one set of declarations for each form that it has had.

Fields as in the vendor's rkllm.h (airockchip/rknn-llm); those of 1.1.x and 1.2.3 were seen in copies that others keep.
The sizes that are checked below were compiled from the headers (LP64), the offsets beside them follow from the fields.
Nothing here was run against the vendor's library.
"""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["ABIS", "Abi", "UnknownAbi", "known_versions"]

_Fields: TypeAlias = list[tuple[str, Any]]

# -- enums

NORMAL, WAITING, FINISH, ERROR, OLD_HIDDEN = range(5)
"""States of a call. WAITING: the character is not complete yet. OLD_HIDDEN: 1.1.4's way to hand over hidden states."""

PROMPT, TOKEN, EMBED, MULTIMODAL = range(4)
GENERATE, GET_LAST_HIDDEN_LAYER, GET_LOGITS = range(3)
GO_ON, PAUSE = 0, 1
"""What a callback answers from 1.2.1 on."""

# -- structs that all forms share


class LoraAdapter(ctypes.Structure):
    _fields_ = [("path", c_char_p), ("name", c_char_p), ("scale", c_float)]


class LoraParam(ctypes.Structure):
    _fields_ = [("name", c_char_p)]


class EmbedInput(ctypes.Structure):
    _fields_ = [("embed", POINTER(c_float)), ("n_tokens", c_size_t)]


class TokenInput(ctypes.Structure):
    _fields_ = [("input_ids", POINTER(c_int32)), ("n_tokens", c_size_t)]


class PromptCacheParam(ctypes.Structure):
    _fields_ = [("save_prompt_cache", c_int), ("path", c_char_p)]


class SamplingParam(ctypes.Structure):
    _fields_ = [
        ("top_k", c_int32),
        ("top_p", c_float),
        ("temperature", c_float),
        ("repeat_penalty", c_float),
        ("frequency_penalty", c_float),
        ("presence_penalty", c_float),
        ("mirostat", c_int32),
        ("mirostat_tau", c_float),
        ("mirostat_eta", c_float),
    ]


class LastHiddenLayer(ctypes.Structure):
    _fields_ = [("hidden_states", POINTER(c_float)), ("embd_size", c_int), ("num_tokens", c_int)]


class Logits(ctypes.Structure):
    _fields_ = [("logits", POINTER(c_float)), ("vocab_size", c_int), ("num_tokens", c_int)]


class PerfStat(ctypes.Structure):
    _fields_ = [
        ("prefill_time_ms", c_float),
        ("prefill_tokens", c_int),
        ("generate_time_ms", c_float),
        ("generate_tokens", c_int),
        ("memory_usage_mb", c_float),
    ]


# -- parameters of rkllm_init

_SAMPLING: _Fields = [
    ("top_p", c_float),
    ("temperature", c_float),
    ("repeat_penalty", c_float),
    ("frequency_penalty", c_float),
    ("presence_penalty", c_float),
    ("mirostat", c_int32),
    ("mirostat_tau", c_float),
    ("mirostat_eta", c_float),
]
_LENGTHS: _Fields = [
    ("model_path", c_char_p),
    ("max_context_len", c_int32),
    ("max_new_tokens", c_int32),
    ("top_k", c_int32),
]
_FLAGS: _Fields = [("skip_special_token", c_bool), ("is_async", c_bool)]
_IMAGE_MARKS: _Fields = [("img_start", c_char_p), ("img_end", c_char_p), ("img_content", c_char_p)]
_CPUS: _Fields = [
    ("base_domain_id", c_int32),
    ("embed_flash", c_int8),
    ("enabled_cpus_num", c_int8),
    ("enabled_cpus_mask", c_uint32),
]


class Extend114(ctypes.Structure):
    _fields_ = [("base_domain_id", c_int32), ("reserved", c_uint8 * 112)]


class Extend120(ctypes.Structure):
    _fields_ = [*_CPUS, ("reserved", c_uint8 * 106)]


class Extend121(ctypes.Structure):
    _fields_ = [*_CPUS, ("n_batch", c_uint8), ("use_cross_attn", c_int8), ("reserved", c_uint8 * 104)]


class Param114(ctypes.Structure):
    _fields_ = [*_LENGTHS, *_SAMPLING, *_FLAGS, *_IMAGE_MARKS, ("extend_param", Extend114)]


class Param120(ctypes.Structure):
    _fields_ = [*_LENGTHS, ("n_keep", c_int32), *_SAMPLING, *_FLAGS, *_IMAGE_MARKS, ("extend_param", Extend120)]


class Param121(ctypes.Structure):
    _fields_ = [*_LENGTHS, ("n_keep", c_int32), *_SAMPLING, *_FLAGS, *_IMAGE_MARKS, ("extend_param", Extend121)]


class Param130(ctypes.Structure):
    _fields_ = [
        *_LENGTHS,
        ("n_keep", c_int32),
        *_SAMPLING,
        ("skip_special_token", c_bool),
        ("ignore_eos_token", c_bool),
        ("is_async", c_bool),
        ("extend_param", Extend121),
    ]


# -- inputs of rkllm_run


_IMAGE: _Fields = [("prompt", c_char_p), ("image_embed", POINTER(c_float)), ("n_image_tokens", c_size_t)]


class MultiModal114(ctypes.Structure):
    _fields_ = _IMAGE


class MultiModal121(ctypes.Structure):
    _fields_ = [
        *_IMAGE,
        ("n_image", c_size_t),
        ("image_width", c_size_t),
        ("image_height", c_size_t),
    ]


class Image(ctypes.Structure):
    _fields_ = [
        ("image_embed", POINTER(c_float)),
        ("n_image_tokens", c_size_t),
        ("n_image", c_size_t),
        ("image_start", c_char_p),
        ("image_end", c_char_p),
        ("image_content", c_char_p),
        ("image_width", c_size_t),
        ("image_height", c_size_t),
    ]


class Video(ctypes.Structure):
    _fields_ = [
        ("video_embed", POINTER(c_float)),
        ("n_frame_tokens", c_size_t),
        ("n_frame_per_video", c_size_t),
        ("n_video", c_size_t),
        ("video_start", c_char_p),
        ("video_end", c_char_p),
        ("video_content", c_char_p),
        ("frame_width", c_size_t),
        ("frame_height", c_size_t),
    ]


class MultiModal130(ctypes.Structure):
    _fields_ = [("prompt", c_char_p), ("image", Image), ("video", Video)]


def _union(multimodal: type[ctypes.Structure]) -> type[ctypes.Union]:
    members: _Fields = [("prompt", c_char_p), ("embed", EmbedInput), ("token", TokenInput), ("multimodal", multimodal)]
    return type("InputUnion", (ctypes.Union,), {"_fields_": members})


_ROLE: _Fields = [("role", c_char_p), ("enable_thinking", c_bool)]


class Input114(ctypes.Structure):
    _fields_ = [("input_type", c_int), ("data", _union(MultiModal114))]


class Input121(ctypes.Structure):
    _fields_ = [*_ROLE, ("input_type", c_int), ("data", _union(MultiModal121))]


class Input130(ctypes.Structure):
    _fields_ = [*_ROLE, ("input_type", c_int), ("data", _union(MultiModal130))]


_ADDITIONS: _Fields = [
    ("mode", c_int),
    ("lora_params", POINTER(LoraParam)),
    ("prompt_cache_params", POINTER(PromptCacheParam)),
]


class InferParam114(ctypes.Structure):
    _fields_ = _ADDITIONS


class InferParam120(ctypes.Structure):
    _fields_ = [*_ADDITIONS, ("keep_history", c_int)]


class InferParam130(ctypes.Structure):
    _fields_ = [
        *_ADDITIONS,
        ("sampling_params", POINTER(SamplingParam)),
        ("keep_history", c_int),
        ("max_new_tokens", c_int32),
    ]


# -- results

_TOKEN: _Fields = [("text", c_char_p), ("token_id", c_int32), ("last_hidden_layer", LastHiddenLayer)]


class Result114(ctypes.Structure):
    _fields_ = _TOKEN


class Result120(ctypes.Structure):
    _fields_ = [*_TOKEN, ("logits", Logits)]


class Result121(ctypes.Structure):
    _fields_ = [*_TOKEN, ("logits", Logits), ("perf", PerfStat)]


VOID_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int)
INT_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)


class Callback130(ctypes.Structure):
    """The tokenizer and the embedding function may be null; both are offered for models that bring their own."""

    _fields_ = [
        ("result", INT_CALLBACK),
        ("result_userdata", c_void_p),
        ("tokenizer", c_void_p),
        ("tokenizer_userdata", c_void_p),
        ("embed", c_void_p),
        ("embed_userdata", c_void_p),
    ]


# -- the forms


class UnknownAbi(Exception):
    """The library's interface is not known, so nothing of it may be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abi:
    """One form of the interface. `clear_arguments` is how many arguments rkllm_clear_kv_cache takes, 0 where there
    is none; `running` is what rkllm_is_running says during a run."""

    name: str
    versions: tuple[str, ...]
    param: type[Any]
    input: type[Any]
    infer_param: type[Any]
    result: type[Any]
    callback: type[Any] = INT_CALLBACK
    callbacks_struct: type[Any] | None = None
    clear_arguments: int = 4
    has_cache_size: bool = True
    has_chat_template: bool = True
    has_logits: bool = True
    running: int = 0

    @property
    def has_sampling(self) -> bool:
        """Whether each run brings its own sampling parameters and limit; before, they were settled at the start."""
        return hasattr(self.infer_param, "sampling_params")

    @property
    def has_perf(self) -> bool:
        return hasattr(self.result, "perf")

    def declare(self, library: ctypes.CDLL) -> None:
        """Give the library's functions their types. Raises UnknownAbi when one is not there."""
        handle, status = c_void_p, c_int
        callback = POINTER(self.callbacks_struct) if self.callbacks_struct else self.callback
        functions: dict[str, list[Any]] = {
            "createDefaultParam": [],
            "init": [POINTER(handle), POINTER(self.param), callback],
            "load_lora": [handle, POINTER(LoraAdapter)],
            "load_prompt_cache": [handle, c_char_p],
            "release_prompt_cache": [handle],
            "destroy": [handle],
            "run": [handle, POINTER(self.input), POINTER(self.infer_param), c_void_p],
            "abort": [handle],
            "is_running": [handle],
        }
        if self.clear_arguments:
            positions = [POINTER(c_int), POINTER(c_int)]
            functions["clear_kv_cache"] = [handle, c_int, *positions][: self.clear_arguments]
        if self.has_cache_size:
            functions["get_kv_cache_size"] = [handle, POINTER(c_int)]
        if self.has_chat_template:
            functions["set_chat_template"] = [handle, c_char_p, c_char_p, c_char_p]
        for name, arguments in functions.items():
            function = getattr(library, f"rkllm_{name}", None)
            if function is None:
                raise UnknownAbi(
                    f"the library lacks a function of RKLLM {self.name}: rkllm_{name}; take another build of it"
                )
            function.argtypes = arguments
            function.restype = self.param if name == "createDefaultParam" else status


ABIS = (
    Abi(
        name="1.1.4",
        versions=("1.1.4",),
        param=Param114,
        input=Input114,
        infer_param=InferParam114,
        result=Result114,
        callback=VOID_CALLBACK,
        clear_arguments=0,
        has_cache_size=False,
        has_chat_template=False,
        has_logits=False,
    ),
    Abi(
        name="1.2.0",
        versions=("1.2.0",),
        param=Param120,
        input=Input114,
        infer_param=InferParam120,
        result=Result120,
        callback=VOID_CALLBACK,
        clear_arguments=2,
        has_cache_size=False,
    ),
    Abi(
        name="1.2.3",
        versions=("1.2.1", "1.2.2", "1.2.3"),
        param=Param121,
        input=Input121,
        infer_param=InferParam120,
        result=Result121,
    ),
    Abi(
        name="1.3.0",
        versions=("1.3.0",),
        param=Param130,
        input=Input130,
        infer_param=InferParam130,
        result=Result121,
        callbacks_struct=Callback130,
        running=1,
    ),
)


def _check(struct: type[ctypes.Structure], size_bytes: int, **offsets: int) -> None:
    found = {name: getattr(struct, name).offset for name in offsets}
    if ctypes.sizeof(struct) != size_bytes or found != offsets:
        raise ImportError(
            f"{struct.__name__} has {ctypes.sizeof(struct)} bytes and offsets {found}, where the runtime has "
            f"{size_bytes} and {offsets}: this machine is not one that the RKLLM runtime is made for"
        )


_check(LoraAdapter, 24, name=8, scale=16)
_check(LoraParam, 8)
_check(EmbedInput, 16, n_tokens=8)
_check(TokenInput, 16, n_tokens=8)
_check(PromptCacheParam, 16, path=8)
_check(SamplingParam, 36, temperature=8, mirostat=24, mirostat_eta=32)
_check(LastHiddenLayer, 16, embd_size=8, num_tokens=12)
_check(Logits, 16, vocab_size=8, num_tokens=12)
_check(PerfStat, 20, prefill_tokens=4, generate_time_ms=8, generate_tokens=12, memory_usage_mb=16)
_check(Extend114, 116, reserved=4)
_check(Extend120, 120, embed_flash=4, enabled_cpus_num=5, enabled_cpus_mask=8, reserved=12)
_check(Extend121, 120, enabled_cpus_mask=8, n_batch=12, use_cross_attn=13, reserved=14)
_check(Param114, 200, top_k=16, top_p=20, mirostat=40, skip_special_token=52, img_start=56, extend_param=80)
_check(Param120, 208, n_keep=20, top_p=24, skip_special_token=56, is_async=57, img_start=64, extend_param=88)
_check(Param121, 208, n_keep=20, top_p=24, skip_special_token=56, is_async=57, img_start=64, extend_param=88)
_check(Param130, 184, top_k=16, n_keep=20, top_p=24, ignore_eos_token=57, is_async=58, extend_param=60)
_check(MultiModal114, 24, image_embed=8, n_image_tokens=16)
_check(MultiModal121, 48, n_image=24, image_width=32, image_height=40)
_check(MultiModal130, 144, image=8, video=72)
_check(Input114, 32, data=8)
_check(Input121, 64, enable_thinking=8, input_type=12, data=16)
_check(Input130, 160, enable_thinking=8, input_type=12, data=16)
_check(InferParam114, 24, lora_params=8, prompt_cache_params=16)
_check(InferParam120, 32, keep_history=24)
_check(InferParam130, 40, sampling_params=24, keep_history=32, max_new_tokens=36)
_check(Result114, 32, token_id=8, last_hidden_layer=16)
_check(Result120, 48, logits=32)
_check(Result121, 72, logits=32, perf=48)
_check(Callback130, 48, tokenizer=16, embed=32)


def known_versions() -> str:
    return ", ".join(version for abi in ABIS for version in abi.versions)
