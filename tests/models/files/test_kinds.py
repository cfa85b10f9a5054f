"""What a GGUF is, by its header. The values are those that llama.cpp's converters and tools write (convert_hf_to_gguf,
convert_lora_to_gguf, llama-imatrix, cvector-generator), and those of files that were published."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_ggufs import write_adapter, write_gguf, write_imatrix, write_projector

from trilithon.errors import ModelError, NotAModel
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.gguf_writer import Plain, header
from trilithon.models.files.kinds import kind_of, kind_of_beginning, read_kind
from trilithon.models.files.model_file import read_model_file
from trilithon.models.synthetic.tiny import write_tiny_model

MODELS = ("chat", "base", "embedding", "reranker")
TEMPLATE = {"tokenizer.chat_template": "{{ messages }}"}
WEIGHTS = ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight")


def values(architecture: str = "llama", stated: str = "", **more: Plain) -> dict[str, Plain]:
    pairs: dict[str, Plain] = {"general.architecture": architecture} if architecture else {}
    pairs |= {"general.type": stated} if stated else {}
    return pairs | {key.replace("__", "."): value for key, value in more.items()}


@pytest.mark.parametrize(
    ("written", "tensors", "kind"),
    [
        # general.type
        (values(stated="adapter"), ("blk.0.attn_q.weight.lora_a",), "adapter"),
        (values(stated="Adapter"), ("x",), "adapter"),
        (values(stated="LoRA"), ("x",), "adapter"),
        (values("clip", "mmproj"), ("v.patch_embd.weight",), "projector"),
        (values("clip", "clip-vision"), ("v.patch_embd.weight",), "projector"),
        (values("clip", "model"), ("v.patch_embd.weight",), "projector"),
        (values("", "imatrix"), ("blk.0.attn_q.weight.in_sum2",), "imatrix"),
        (values("llama", "control_vector"), ("direction.1",), "control vector"),
        (values(stated="vocab"), (), "vocabulary"),
        (values(stated="model"), (), "vocabulary"),
        (values(stated="model"), WEIGHTS, "base"),
        (values(stated="finetune"), WEIGHTS, "base"),
        (values(stated="Vision-Encoder"), ("x",), "projector"),
        (values(stated="rerank"), WEIGHTS, "reranker"),
        (values(stated="embedding", **TEMPLATE), WEIGHTS, "embedding"),
        (values(stated="tokenizer"), (), "vocabulary"),
        (values("sdxl", "vae"), ("x",), "images"),
        (values(stated="dataset"), ("rows",), "other"),
        (values("", "dataset"), ("rows",), "other"),
        # general.architecture
        (values("controlvector", controlvector__model_hint="llama"), ("direction.1", "direction.2"), "control vector"),
        (values("clip", clip__has_audio_encoder=True), ("a.conv1d.1.weight",), "audio projector"),
        (values("clip", clip__has_audio_encoder=True, clip__has_vision_encoder=True), ("v.x",), "projector"),
        (values("whisper"), WEIGHTS, "speech"),
        (values("wavtokenizer-dec"), WEIGHTS, "sound"),
        (values("flux"), ("double_blocks.0.img_attn.qkv.weight",), "images"),
        (values("eagle3"), WEIGHTS, "draft head"),
        (values("gemma4_assistant"), WEIGHTS, "draft head"),
        # the tensors alone
        (values(), ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"), "adapter"),
        (values(), ("direction.1",), "control vector"),
        (values(), ("v.blk.0.attn_q.weight", "mm.0.weight"), "projector"),
        (values(), (*WEIGHTS, "v.blk.0.attn_q.weight", "mm.0.weight"), "base"),
        (values("", ""), ("blk.0.ffn_up.weight.in_sum2", "blk.0.ffn_up.weight.counts"), "imatrix"),
        # layers for speculative decoding: all blocks, or some
        (values("q", q__block_count=41, q__nextn_predict_layers=1), ("token_embd.weight", "blk.40.x"), "draft head"),
        (values("q", q__block_count=2, q__nextn_predict_layers=1), WEIGHTS, "base"),
        (values("q", q__block_count=2, q__nextn_predict_layers=0), WEIGHTS, "base"),
        # vectors and ranks
        (values("bert", bert__pooling_type=1), WEIGHTS, "embedding"),
        (values("bert", bert__pooling_type=0), WEIGHTS, "embedding"),
        (values("bert"), WEIGHTS, "embedding"),
        (values("nomic-bert-moe"), WEIGHTS, "embedding"),
        (values("modern-bert", **TEMPLATE), WEIGHTS, "embedding"),
        (values("t5encoder"), WEIGHTS, "embedding"),
        (values("gemma-embedding"), WEIGHTS, "embedding"),
        (values("qwen3", qwen3__pooling_type=3, **TEMPLATE), WEIGHTS, "embedding"),
        (values("qwen3", qwen3__pooling_type=2), WEIGHTS, "embedding"),
        (values("qwen3", qwen3__pooling_type=4, **TEMPLATE), WEIGHTS, "reranker"),
        (values("bert", bert__pooling_type=4), WEIGHTS, "reranker"),
        (values("bert"), (*WEIGHTS, "cls.weight", "cls.bias"), "reranker"),
        (values("bert", bert__pooling_type=2), (*WEIGHTS, "cls.weight"), "embedding"),
        (values("qwen3", qwen3__pooling_type=0, **TEMPLATE), WEIGHTS, "chat"),
        (values("qwen3", qwen3__pooling_type=77, **TEMPLATE), WEIGHTS, "chat"),
        (values("qwen3", qwen3__pooling_type="mean", **TEMPLATE), WEIGHTS, "chat"),
        # models that answer
        (values("pangu-embedded", **TEMPLATE), WEIGHTS, "chat"),
        (values(**TEMPLATE), WEIGHTS, "chat"),
        (values(tokenizer__chat_template="  "), WEIGHTS, "base"),
    ],
)
def test_what_a_header_says(tmp_path: Path, written: dict[str, Plain], tensors: tuple[str, ...], kind: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", written, tensors)
    stated = read_kind(path)
    assert (stated.name, bool(stated.problem)) == (kind, kind not in MODELS)
    if stated.problem:
        with pytest.raises(NotAModel) as caught:
            read_model_file(path, None)
        assert str(caught.value) == stated.sentence(path)
        assert "\n" not in str(caught.value) and "; " in stated.problem
    else:
        assert read_gguf(path).kind == kind


def test_what_is_told_of_the_kinds(tmp_path: Path) -> None:
    def sentence(path: Path) -> str:
        return read_kind(path).sentence(path.name)

    assert sentence(write_adapter(tmp_path / "mystyle.gguf")) == (
        "mystyle.gguf is a LoRA adapter: no engine runs it alone; name it with ADAPTER in a Modelfile, and with FROM "
        "the model that it was trained for"
    )
    assert "is a vision projector: no engine runs it alone; keep it beside its model" in sentence(
        write_projector(tmp_path / "p.gguf")
    )
    assert "is an importance matrix (imatrix): no engine runs it alone" in sentence(write_imatrix(tmp_path / "i.gguf"))


def test_an_adapter_of_rkllms_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("Qwen_lora.rkllm", "Qwen-lora-merged.rkllm"):
        (tmp_path / name).write_bytes(bytes(64))
    assert read_model_file(tmp_path / "Qwen-lora-merged.rkllm", None).kind == "chat"
    with pytest.raises(NotAModel, match=r"Qwen_lora\.rkllm is a LoRA adapter: no engine runs it alone"):
        read_model_file(tmp_path / "Qwen_lora.rkllm", None)


def test_the_beginning_is_enough_where_it_says_so(tmp_path: Path) -> None:
    for path in (write_adapter(tmp_path / "a"), write_projector(tmp_path / "p"), write_imatrix(tmp_path / "i")):
        assert kind_of_beginning(path.read_bytes()[:200]) == read_kind(path)
    stated = write_gguf(tmp_path / "m", values(stated="model", **TEMPLATE)).read_bytes()
    kind = kind_of_beginning(stated)
    assert kind is not None and kind.name == "chat"
    model = write_tiny_model(tmp_path / "m").read_bytes()
    assert kind_of_beginning(model[:4096]) is None
    vocabulary = kind_of_beginning(header({"general.architecture": "llama"}, []))
    assert vocabulary is not None and vocabulary.name == "vocabulary"
    assert kind_of_beginning(header({"general.architecture": "llama", "split.count": 2}, [])) is None
    for nothing in (b"", b"GGUF", model[:40], b"GGUF\3\0\0\0" + bytes(60), struct.pack("<4sIQQ", b"GGUF", 3, 1, 2**63)):
        assert kind_of_beginning(nothing) is None


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_have_a_beginning(content: bytes, is_gguf: bool) -> None:
    kind_of_beginning((b"GGUF\3\0\0\0" if is_gguf else b"") + content)


def test_a_damaged_file_is_no_kind(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ModelError, match="download it again"):
        read_kind(path)


def test_weights_of_an_unknown_type_keep_the_kind_that_the_values_say(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf")
    content = path.read_bytes()
    name = b"blk.0.attn_q.weight.lora_a"
    at = content.index(name) + len(name) + 4 + 8
    path.write_bytes(content[:at] + struct.pack("<I", 250) + content[at + 4 :])
    assert read_kind(path).name == "adapter"


@given(
    st.dictionaries(
        st.sampled_from(("general.type", "general.architecture", "llama.pooling_type", "llama.block_count")),
        st.one_of(st.text(max_size=9), st.integers(-5, 9), st.booleans(), st.just((1, 2))),
    ),
    st.none() | st.frozensets(st.sampled_from((*WEIGHTS, "cls.weight", "direction.1", "v.x", "?"))),
)
def test_any_header_has_a_kind(written: dict[str, int | str | bool], tensors: frozenset[str] | None) -> None:
    kind = kind_of(written, tensors)
    assert bool(kind.problem) == (kind.name not in MODELS)
    assert bool(kind.label) == bool(kind.problem)
