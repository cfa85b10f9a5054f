"""One model in the library of the package ik-llama-cpp-python, by the package's own low-level bindings.

They are private, and their structures are those of one version: `wheel` lists those that were tried."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from trilithon.engines.ik_llamacpp.library_options import LibraryOptions
from trilithon.errors import RunError

__all__ = ["IkModel", "NotLoaded"]

# ggml_type of this fork's ggml.h; the others are llama.cpp's.
_OWN_TYPES = {"q6_0": 133, "q8_KV": 151}
_PIECE_BYTES = 512  # longer tokens are read again
_MOST_METADATA_BYTES = 16 << 20


class NotLoaded(Exception):
    """The library does not load the model; its own log says why."""


class IkModel:
    """Raises NotLoaded. Its methods block, and are for one thread at a time; `tokenize` and `piece` for any.

    `cancelled` ends `evaluate` after the batch at work."""

    def __init__(self, path: Path, options: LibraryOptions) -> None:
        self._api: Any = import_module("ik_llama_cpp._ctypes_api")
        self._library: Any = self._api._lib
        self._declare()
        self._api.llama_backend_init()
        model = self._api.llama_model_default_params()
        model.n_gpu_layers = 0
        model.repack_tensors, model.merge_qkv = "rtr" in options.switches, "mqkv" in options.switches
        model.use_thp = "thp" in options.switches
        model.use_mmap = not model.repack_tensors  # as its server does: the file's pages cannot be rewritten
        self._model = self._api.llama_model_load_from_file(str(path).encode(), model)
        if not self._model:
            raise NotLoaded(f"{path.name} cannot be loaded")
        self._context = self._api.llama_init_from_model(self._model, self._context_parameters(options))
        if not self._context:
            raise NotLoaded(f"no context of {options.context} tokens for {path.name}")
        for adapter, scale in options.adapters:
            loaded = self._library.llama_lora_adapter_init(self._model, adapter.encode())
            if not loaded or self._library.llama_lora_adapter_set(self._context, loaded, scale):
                raise NotLoaded(f"{adapter} is no adapter for {path.name}")
        vocabulary = self._api.llama_model_get_vocab(self._model)
        self.vocabulary: int = self._api.llama_vocab_n_tokens(vocabulary)
        self.bos: int = self._library.llama_vocab_bos(vocabulary)
        self.eos: int = self._library.llama_vocab_eos(vocabulary)
        self.context = options.context
        self.trained_context: int = self._library.llama_n_ctx_train(self._model)
        self.cancelled = False
        self._batch = options.batch

    def _declare(self) -> None:
        """The functions that the package's bindings lack; by llama.h of the package."""
        pointer, token = ctypes.c_void_p, ctypes.c_int32
        declared: dict[str, tuple[Any, list[Any]]] = {
            "llama_vocab_bos": (token, [pointer]),
            "llama_vocab_eos": (token, [pointer]),
            "llama_n_ctx_train": (token, [pointer]),
            "llama_batch_get_one": (self._api.llama_batch, [ctypes.POINTER(token), token, token, token]),
            "llama_kv_cache_seq_rm": (ctypes.c_bool, [pointer, token, token, token]),
            "llama_model_meta_val_str": (token, [pointer, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]),
            "llama_lora_adapter_init": (pointer, [pointer, ctypes.c_char_p]),
            "llama_lora_adapter_set": (token, [pointer, pointer, ctypes.c_float]),
        }
        for name, (result, arguments) in declared.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def _context_parameters(self, options: LibraryOptions) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = options.context, 1
        parameters.n_batch = parameters.n_ubatch = options.batch
        parameters.n_threads = parameters.n_threads_batch = options.threads
        parameters.type_k, parameters.type_v = _type(options.kv_type_k), _type(options.kv_type_v)
        parameters.flash_attn = options.flash_attention
        parameters.k_cache_hadamard, parameters.v_cache_hadamard = (
            "khad" in options.switches,
            "vhad" in options.switches,
        )
        return parameters

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """With the texts of special tokens read as those tokens."""
        content = text.encode(errors="replace")
        most = len(content) + 2  # each token has a byte or more, but for the special ones around the text
        tokens = (ctypes.c_int32 * most)()
        count = self._api.llama_tokenize(self._model, content, len(content), tokens, most, add_special, True)
        if count < 0:
            raise RunError(f"a text of {len(content)} bytes cannot be tokenized")
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Its bytes; empty for a special token without `special`."""
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            count: int = self._api.llama_token_to_piece(self._model, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        is_end: Callable[[Any, int], bool] = self._api.llama_token_is_eog
        return frozenset(token for token in range(self.vocabulary) if is_end(self._model, token))

    def is_end(self, token: int) -> bool:
        return bool(self._api.llama_token_is_eog(self._model, token))

    def metadata(self, key: str) -> str:
        """A text of the file's header; empty where there is none."""
        length: int = self._library.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if not 0 < length < _MOST_METADATA_BYTES:
            return ""
        buffer = ctypes.create_string_buffer(length + 1)
        self._library.llama_model_meta_val_str(self._model, key.encode(), buffer, length + 1)
        return buffer.value.decode(errors="replace")

    def keep(self, tokens: int) -> bool:
        """Forget all positions of the KV cache from `tokens` on. False where this model's cache cannot forget a part:
        then it is empty."""
        if self._library.llama_kv_cache_seq_rm(self._context, 0, tokens, -1):
            return True
        self._api.llama_kv_cache_clear(self._context)
        return False

    def evaluate(self, tokens: Sequence[int], position: int) -> bool:
        """Put the tokens into the KV cache from `position` on. False where it was cancelled. Raises RunError."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        for start in range(0, len(tokens), self._batch):
            if self.cancelled:
                return False
            count = min(self._batch, len(tokens) - start)
            first = ctypes.cast(ctypes.byref(array, start * 4), ctypes.POINTER(ctypes.c_int32))
            batch = self._library.llama_batch_get_one(first, count, position + start, 0)
            if code := self._api.llama_decode(self._context, batch):
                raise RunError(f"llama_decode failed with code {code} at position {position + start}")
        return True

    def logits(self) -> NDArray[np.float32]:
        """Of the last token that was evaluated: one for each token of the vocabulary, valid until the next call of
        `evaluate`."""
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (self.vocabulary,))


def _type(name: str) -> int:
    return _OWN_TYPES.get(name) or int(GGMLQuantizationType[name.upper()])
