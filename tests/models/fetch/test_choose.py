"""Names as they are found in the wild, and the choice among them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.board.chips import target_names
from trilithon.errors import ModelError
from trilithon.models.fetch.choose import Offer, Target, choose_files
from trilithon.models.files.file_names import chip_of, quantization_of, read_file_name, shard_of

GIB = 1 << 30
RK3588 = Target(chip="RK3588", memory_bytes=16 * GIB)
RK3576 = Target(chip="RK3576", memory_bytes=8 * GIB)
PC = Target(chip="unknown", memory_bytes=32 * GIB)

# path, kind, quantisation, chip
NAMES = [
    ("Qwen2.5-1.5B-Instruct-rk3588-w8a8-opt-0-hybrid-ratio-0.0.rkllm", "weights", "w8a8", "RK3588"),
    ("Qwen2.5-1.5B-Instruct-rk3588-w8a8_g128-opt-1-hybrid-ratio-0.5.rkllm", "weights", "w8a8_g128", "RK3588"),
    ("Qwen3_4B_RK3588S_W8A8.rkllm", "weights", "w8a8", "RK3588"),
    ("DeepSeek-R1-Distill-Qwen-1.5B_W8A8_RK3588.rkllm", "weights", "w8a8", "RK3588"),
    ("deepseek-r1-1.5b.w4a16-g64.rk3576.v1.2.1.rkllm", "weights", "w4a16_g64", "RK3576"),
    ("rk3576/qwen2-vl-2b_w4a16_g128.rkllm", "weights", "w4a16_g128", "RK3576"),
    ("Qwen3-0.6B-rk3562-w4a8_g32.RKLLM", "weights", "w4a8_g32", "RK3562"),
    ("gemma-3-1b-it.fp16.rv1126b.rkllm", "weights", "fp16", "RV1126B"),
    ("qwen2.5-1.5b-instruct-w8a8-rk3588j.rkllm", "weights", "w8a8", "RK3588"),
    ("qwen3-0.6b-rk3588s2-w8a8.rkllm", "weights", "w8a8", "RK3588"),
    ("Qwen3-4B_RK3588M_W8A8.rkllm", "weights", "w8a8", "RK3588"),
    ("smollm-rk3576j-w4a16.rkllm", "weights", "w4a16", "RK3576"),
    ("model-rk3688-w8a8.rkllm", "weights", "w8a8", "RK3688"),
    ("tinyllama.rkllm", "weights", "", ""),
    ("qwen2-vl-vision_rk3588.rknn", "vision", "", "RK3588"),
    ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "weights", "Q4_K_M", ""),
    ("Meta-Llama-3.1-8B-Instruct.Q4_K_S.gguf", "weights", "Q4_K_S", ""),
    ("gemma-3-1b-it-UD-Q4_K_XL.gguf", "weights", "Q4_K_XL", ""),
    ("X-Q4KM.gguf", "weights", "Q4_K_M", ""),
    ("model.q8-0.gguf", "weights", "Q8_0", ""),
    ("TinyLlama.fp16.gguf", "weights", "F16", ""),
    ("Qwen3-0.6B-BF16.gguf", "weights", "BF16", ""),
    ("m-IQ3_XXS.gguf", "weights", "IQ3_XXS", ""),
    ("m-iq4-nl.gguf", "weights", "IQ4_NL", ""),
    ("Mistral-7B-Q4_0_4_4.gguf", "weights", "Q4_0_4_4", ""),
    ("gpt-oss-20b-mxfp4.gguf", "weights", "MXFP4", ""),
    ("bitnet-TQ2_0.gguf", "weights", "TQ2_0", ""),
    ("Q6_K/big-Q6_K-00001-of-00003.gguf", "weights", "Q6_K", ""),
    ("BF16/big-00002-of-00003.gguf", "weights", "BF16", ""),
    ("mmproj-model-f16.gguf", "projector", "F16", ""),
    ("Qwen2-VL-2B.mmproj-Q8_0.gguf", "projector", "Q8_0", ""),
    ("style-lora-f16.gguf", "adapter", "F16", ""),
    ("style.LoRA.gguf", "adapter", "", ""),
    ("style_qlora_adapters.gguf", "adapter", "", ""),
    ("rslora-style.gguf", "adapter", "", ""),
    ("flora-7b.gguf", "weights", "", ""),
    ("happy.control-vector.gguf", "other", "", ""),
    ("cvector-happy.gguf", "other", "", ""),
    ("qwen.imatrix.gguf", "other", "", ""),
    ("ggml-vocab-qwen2.gguf", "other", "", ""),
    ("model-NVFP4.gguf", "weights", "NVFP4", ""),
    ("Bonsai-8B-Q1_0.gguf", "weights", "Q1_0", ""),
    ("Bonsai-8B-Q1_0_g128.gguf", "weights", "Q1_0", ""),
    ("Ternary-Bonsai-4B-Q2_0.gguf", "weights", "Q2_0", ""),
    ("Qwen3-8B-Q4_K_R4.gguf", "weights", "Q4_K_R4", ""),
    ("DeepSeek-R1-IQ4_KSS.gguf", "weights", "IQ4_KSS", ""),
    ("ggml-model-i2_s.gguf", "weights", "I2_S", ""),
    ("model-Q4.gguf", "weights", "Q4", ""),
    ("gemma-q8.gguf", "weights", "Q8", ""),
    ("mtp-Qwen3.6-35B-A3B-Q8_0.gguf", "draft", "Q8_0", ""),
    ("Q8_0/MTP-Qwen3.6-27B-Q8_0.gguf", "draft", "Q8_0", ""),
    ("Qwen3.6-27B-MTP-Q4_K_M.gguf", "weights", "Q4_K_M", ""),
    ("eagle3-llama-3.1-8b-F16.gguf", "draft", "F16", ""),
    ("EAGLE-3-Qwen3-32B.gguf", "draft", "", ""),
    ("dflash-Qwen3.6-27B-Q8_0.gguf", "draft", "Q8_0", ""),
    ("Qwen3-8B-DFlash-f16.gguf", "draft", "F16", ""),
    ("README.md", "other", "", ""),
    ("q4_k_m.gguf.part", "other", "", ""),
    (".gguf", "other", "", ""),
]


def test_a_repository_without_a_model_says_what_it_has() -> None:
    offers = [Offer("mtp-Qwen3.6-27B-Q8_0.gguf", 1), Offer("style-lora.gguf", 1), Offer("README.md", 1)]
    with pytest.raises(
        ModelError, match="has only adapters and draft heads, which no engine runs alone; pull the model"
    ):
        choose_files(offers, PC, repository="a/b")
    with_model = choose_files([*offers, Offer("Qwen3.6-27B-Q8_0.gguf", 1)], PC)
    assert [name.name for name in with_model.weights] == ["Qwen3.6-27B-Q8_0.gguf"]


@pytest.mark.parametrize(("path", "kind", "quantization", "chip"), NAMES)
def test_names_in_the_wild(path: str, kind: str, quantization: str, chip: str) -> None:
    found = read_file_name(path)
    assert (found.kind, found.quantization, found.chip) == (kind, quantization, chip)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("qwen2.5-1.5b-instruct-w8a8-rk3588j.rkllm", "qwen2.5-1.5b-instruct"),
        ("qwen3-0.6b-rk3588s2-w8a8.rkllm", "qwen3-0.6b"),
    ],
)
def test_a_variant_of_a_chip_is_no_part_of_the_models_name(name: str, base: str) -> None:
    assert read_file_name(name).base == base


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct"),
        ("Meta-Llama-3.1-8B-Instruct.Q4_K_S.gguf", "Meta-Llama-3.1-8B-Instruct"),
        ("Q6_K/big-Q6_K-00001-of-00003.gguf", "big"),
        ("Qwen2.5-1.5B-Instruct-rk3588-w8a8-opt-0-hybrid-ratio-0.0.rkllm", "Qwen2.5-1.5B-Instruct"),
        ("rk3588-w8a8.rkllm", "rk3588-w8a8"),
        ("plain.gguf", "plain"),
        ("README", ""),
    ],
)
def test_the_name_without_what_tells_files_apart(path: str, base: str) -> None:
    assert read_file_name(path).base == base


@pytest.mark.parametrize(
    "name", ["a-00001-of-00002", "a-1-of-2.gguf", "-00001-of-00002.gguf", "a-00001-of-00002x.gguf"]
)
def test_names_of_no_shards(name: str) -> None:
    assert shard_of(name) is None


def test_what_else_a_name_says() -> None:
    found = read_file_name("a/Qwen2.5-rk3588-w8a8-opt-1-hybrid-ratio-0.5.rkllm")
    assert (found.hybrid, found.optimisation, found.shard) == (0.5, 1, None)
    shard = read_file_name("big-Q6_K-00002-of-00010.gguf")
    assert (shard.shard, shard.stem) == ((2, 10), "big-Q6_K")


@pytest.mark.parametrize(
    ("text", "chip"),
    [
        ("RK3588S board", "RK3588"),
        ("user/Qwen-rk3576-1.1.4", "RK3576"),
        ("rk3588-rk3576", ""),
        ("rk35880", ""),
        ("", ""),
    ],
)
def test_chips(text: str, chip: str) -> None:
    assert chip_of(text) == chip


def offers(*paths: str, size_bytes: int = GIB) -> list[Offer]:
    return [Offer(path, size_bytes) for path in paths]


RKLLM = offers(
    *(f"Qwen2.5-1.5B-{chip}-{quant}-opt-{opt}-hybrid-ratio-{ratio}.rkllm"
      for chip, quants in (("rk3588", ("w8a8", "w8a8_g128", "w8a8_g512")), ("rk3576", ("w4a16", "w4a16_g64", "w8a8")))
      for quant in quants for opt in (0, 1) for ratio in ("0.0", "0.5", "1.0")),
    "README.md", "vision-rk3588.rknn", "vision-rk3576.rknn",
)  # fmt: skip
GGUF = [
    *(Offer(f"Qwen2.5-7B-{quant}.gguf", int(size * GIB)) for quant, size in (
        ("Q2_K", 3), ("Q3_K_M", 3.8), ("Q4_0", 4.4), ("Q4_K_M", 4.7), ("Q5_K_M", 5.4), ("Q6_K", 6.2), ("Q8_0", 8.1))),
    *(Offer(f"F16/Qwen2.5-7B-F16-0000{number}-of-00003.gguf", 5 * GIB) for number in (1, 2, 3)),
    Offer("mmproj-F32.gguf", 1), Offer("mmproj-F16.gguf", 1), Offer("Qwen2.5-7B.imatrix.gguf", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "wanted", "name", "why"),
    [
        (RKLLM, RK3588, "rk3588-w8a8-opt-0-hybrid-ratio-0.0", "w8a8: what RK3588 computes best"),
        (RKLLM, RK3576, "rk3576-w4a16-opt-0-hybrid-ratio-0.0", "w4a16: what RK3576 computes best"),
        (RKLLM, Target(chip="RK3588S"), "rk3588-w8a8-opt-0-hybrid-ratio-0.0", "w8a8: what RK3588 computes best"),
        (RKLLM, Target(chip="RK3588", quantization="W8A8-G128"), "w8a8_g128-opt-0-hybrid-ratio-0.0", "as requested"),
        (RKLLM, Target(chip="rk3576", chip_by_name=True, quantization="w8a8"), "rk3576-w8a8-opt-0", "as requested"),
        (GGUF, PC, "Qwen2.5-7B-Q4_K_M", "Q4_K_M: small, with a quality near the original"),
        (GGUF, Target(chip="BCM2712", memory_bytes=6 * GIB), "Q3_K_M", "the nearest to Q4_K_M that fits the memory"),
        (GGUF, Target(chip="x", memory_bytes=2 * GIB), "Q2_K", "the smallest, but its 3.0 GiB leave no room"),
        (GGUF, Target(chip="RK3588", memory_bytes=32 * GIB, npu_gguf=True), "Q8_0", "Q8_0: the NPU runs it"),
        (GGUF, Target(chip="RK3588", memory_bytes=16 * GIB, npu_gguf=True), "Q4_K_M", "Q4_K_M: small"),
        (GGUF, Target(chip="RK3588", quantization="f16"), "F16-00001-of-00003", "F16: as requested"),
        (GGUF, Target(chip="RK3588", quantization="qwen2.5-7b-q6_k.GGUF"), "Q6_K", "as requested"),
        (GGUF, Target(chip="x", quantization="Q4_K"), "Q4_K_M", "as requested"),
        (GGUF + RKLLM, RK3588, ".rkllm", "w8a8"),
        (GGUF + RKLLM, PC, "Q4_K_M.gguf", "Q4_K_M"),
        (GGUF + RKLLM, Target(chip="RK3566", memory_bytes=8 * GIB), "Q4_K_M.gguf", "Q4_K_M"),
        (GGUF + RKLLM, Target(chip="RK3588", quantization="q8_0"), "Q8_0.gguf", "as requested"),
        (offers("a.gguf"), PC, "a.gguf", "a.gguf: the only one"),
    ],
)  # fmt: skip
def test_the_choice_and_its_reason(there: list[Offer], wanted: Target, name: str, why: str) -> None:
    choice = choose_files(there, wanted)
    assert name in choice.weights[0].path
    assert why in choice.why
    assert "\n" not in choice.why


def test_what_comes_along() -> None:
    assert [each.path for each in choose_files(GGUF, PC).others] == ["mmproj-F16.gguf"]
    assert [each.path for each in choose_files(RKLLM, RK3576).others] == ["vision-rk3576.rknn"]
    shards = choose_files(GGUF, Target(chip="x", quantization="F16")).weights
    assert [each.shard for each in shards] == [(1, 3), (2, 3), (3, 3)]


def test_a_repository_may_say_the_chip_for_all() -> None:
    there = offers("qwen-w8a8.rkllm", "qwen-w8a8_g128.rkllm")
    assert choose_files(there, RK3588, repository="u/Qwen-RK3588-1.2.1").weights[0].chip == "RK3588"
    with pytest.raises(ModelError, match=r"u/Qwen-RK3588-1\.2\.1 has files for RK3588 only, and this is RK3576"):
        choose_files(there, RK3576, repository="u/Qwen-RK3588-1.2.1")


@pytest.mark.parametrize(
    ("there", "wanted", "words"),
    [
        (RKLLM, PC, r"files for RK3576, RK3588 only, and this is a machine without such an NPU; .* --chip rk3588"),
        (GGUF, Target(chip="x", quantization="Q9"), r"there is no Q9 among its files; there are .*Q4_K_M"),
        (GGUF, Target(chip="rk9", chip_by_name=True), "unknown chip 'rk9'; there are rk3588"),
        (offers("model.safetensors", "config.json"), PC, "only safetensors; look for a GGUF conversion"),
        (offers("README.md"), PC, "has no GGUF or RKLLM file"),
        (offers("a-00001-of-00002.gguf"), PC, "lacks shards"),
        ([], PC, "has no GGUF or RKLLM file"),
    ],
)
def test_nothing_suits(there: list[Offer], wanted: Target, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        choose_files(there, wanted, repository="u/r")


WORDS = st.sampled_from(
    ["Qwen2.5", "1.5B", "Instruct", "rk3588", "RK3576", "rk3688", "w8a8", "W4A16", "g128", "q4_k_m", "Q8_0", "F16",
     "opt", "0", "hybrid", "ratio", "0.5", "mmproj", "lora", "00001-of-00002", "00002-of-00002", "ä", "..", " "]
)  # fmt: skip
PATHS = st.builds(
    lambda folder, words, mark, suffix: "/".join([*folder, mark.join(words) + suffix]),
    st.lists(WORDS, max_size=2),
    st.lists(WORDS, min_size=1, max_size=6),
    st.sampled_from("-_."),
    st.sampled_from([".gguf", ".rkllm", ".GGUF", ".rknn", ".json", ""]),
)
WANTED = st.builds(
    Target,
    chip=st.sampled_from([*target_names(), "RK3588", "unknown"]),
    memory_bytes=st.none() | st.integers(0, 1 << 40),
    npu_gguf=st.booleans(),
    quantization=st.sampled_from(["", "", "Q4_K_M", "w8a8", "F16", "nonsense"]),
)


@given(st.dictionaries(PATHS, st.integers(0, 1 << 40), max_size=12), WANTED, st.randoms(use_true_random=False))
def test_a_choice_is_whole_and_for_this_chip(sizes: dict[str, int], wanted: Target, luck: random.Random) -> None:
    there = [Offer(path, size) for path, size in sizes.items()]
    try:
        choice = choose_files(there, wanted)
    except ModelError as error:
        assert "\n" not in str(error)
        return
    chosen = [*choice.weights, *choice.others]
    assert {each.path for each in chosen} <= sizes.keys()
    assert all(each.chip in (wanted.platform, "") for each in chosen if each.format in ("rkllm", "rknn"))
    first = choice.weights[0]
    assert [each.shard for each in choice.weights] == (
        [(number, first.shard[1]) for number in range(1, first.shard[1] + 1)] if first.shard else [None]
    )
    luck.shuffle(there)
    assert choose_files(there, wanted) == choice


@given(PATHS)
def test_case_and_separators_say_nothing(path: str) -> None:
    found, other = read_file_name(path), read_file_name(path.upper())
    assert (found.kind, found.quantization, found.chip) == (other.kind, other.quantization, other.chip)


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    read_file_name(text)
    found = quantization_of(text)
    assert quantization_of(found) == found
