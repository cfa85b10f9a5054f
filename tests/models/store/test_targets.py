"""One repository for several chips: which files of the model that was there stay beside the new ones."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from trilithon.models.names import ModelName
from trilithon.models.store.manifest import FileFormat, Manifest, Role, StoredFile, now
from trilithon.models.store.targets import with_other_targets

NAME = ModelName("hf.co", "u", "M", "latest")


def file(name: str, chip: str = "", role: Role = "weights") -> StoredFile:
    kinds: dict[str, FileFormat] = {"gguf": "gguf", "rkllm": "rkllm", "rknn": "rknn", "json": "json"}
    digest = (name + chip).encode().hex().ljust(64, "0")[-64:]
    form = kinds[name.rpartition(".")[2]]
    return StoredFile(role=role, digest=digest, size_bytes=1, name=name, format=form, target_platform=chip)


def manifest(*files: StoredFile, source: str = "hf.co/u/M at c0ffee") -> Manifest:
    return Manifest(name=NAME, files=files, source=source, created=now())


A, B = file("M-a.rkllm", "RK3588"), file("M-b.rkllm", "RK3576")
TOKENIZER = file("tokenizer.json", role="tokenizer")
EYE_A, EYE_B = file("eye-a.rknn", "RK3588", "vision"), file("eye-b.rknn", "RK3576", "vision")
GGUF, PROJECTOR = file("M-Q4_K_M.gguf"), file("mmproj.gguf", role="projector")


def names(found: Manifest) -> list[str]:
    return [each.name for each in found.files]


def test_a_file_for_another_chip_stays_behind_the_new_one() -> None:
    found = with_other_targets(manifest(B, EYE_B, TOKENIZER), manifest(A, EYE_A, TOKENIZER))
    assert found.files == (B, EYE_B, TOKENIZER, A, EYE_A)


def test_a_file_for_the_same_chip_is_replaced() -> None:
    newer = file("M-a-better.rkllm", "RK3588")
    assert with_other_targets(manifest(newer, TOKENIZER), manifest(A, EYE_A, B, TOKENIZER)).files == (
        newer,
        TOKENIZER,
        B,
    )


def test_a_gguf_stays_beside_files_for_chips_and_they_beside_it() -> None:
    assert names(with_other_targets(manifest(A, TOKENIZER), manifest(GGUF, PROJECTOR))) == [
        *("M-a.rkllm", "tokenizer.json", "M-Q4_K_M.gguf", "mmproj.gguf")
    ]
    assert names(with_other_targets(manifest(GGUF), manifest(A, TOKENIZER))) == [
        *("M-Q4_K_M.gguf", "M-a.rkllm", "tokenizer.json")
    ]
    assert with_other_targets(manifest(GGUF), manifest(PROJECTOR, file("M-Q8_0.gguf"))).files == (GGUF,)


def test_another_revision_is_the_same_model_and_another_source_is_none() -> None:
    before = manifest(A, source="HF.co/u/m at 000000")
    assert with_other_targets(manifest(B), before).files == (B, A)
    assert with_other_targets(manifest(B), replace(before, source="a Modelfile")).files == (B,)
    assert with_other_targets(manifest(B), replace(before, source="hf.co/u/Other at 000000")).files == (B,)


def test_files_of_one_name_are_told_apart_by_their_chips() -> None:
    same, other = file("model.rkllm", "RK3588"), file("model.rkllm", "RK3576")
    assert names(with_other_targets(manifest(other), manifest(same))) == ["model.rkllm", "model-rk3588.rkllm"]
    taken = file("MODEL-RK3588.rkllm", "RK3576")
    assert names(with_other_targets(manifest(other, taken), manifest(same)))[-1] == "model-rk3588-2.rkllm"


def test_a_file_for_nobody_knows_which_chip_is_replaced() -> None:
    assert with_other_targets(manifest(B), manifest(file("M.rkllm"), TOKENIZER)).files == (B,)


files = st.lists(
    st.builds(
        file,
        st.sampled_from(["m.rkllm", "n.rkllm", "eye.rknn", "m.gguf", "m-rk3588.rkllm", "tokenizer.json"]),
        st.sampled_from(["RK3588", "RK3576", ""]),
        st.sampled_from(["weights", "vision", "tokenizer"]),
    ),
    unique_by=lambda each: each.name,
    max_size=6,
)


@given(new=files, before=files)
def test_the_new_ones_stand_in_front_and_nothing_is_made_up(new: list[StoredFile], before: list[StoredFile]) -> None:
    found = with_other_targets(manifest(*new), manifest(*before))
    assert found.files[: len(new)] == tuple(new)
    kept = found.files[len(new) :]
    assert {each.digest for each in kept} <= {each.digest for each in before}
    assert with_other_targets(found, found).files == found.files
