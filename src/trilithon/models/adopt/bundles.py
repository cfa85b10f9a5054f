"""Files in a folder put together into models: weights, the parts of a split file, and what belongs beside them.

Only names and sizes are looked at; headers are read when a model is shown or run.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.models.adopt.scan_root import ScanResult, ScanRoot, stored
from trilithon.models.files.file_names import FileName, read_file_name
from trilithon.models.files.rkllm import companion_folders
from trilithon.models.names import name_part
from trilithon.models.store.manifest import FileFormat, Role, StoredFile

__all__ = ["Bundle", "bundles", "files_below", "with_tags"]

# What Hugging Face's tokenizers are made of, and the template.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "preprocessor_config.json", "vision.json"),
)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_MOST_PARTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One model: `base` is its name without quantisation and chip, `tag` what tells it from others of that name."""

    base: str
    stem: str
    tag: str
    first: ScanResult
    files: tuple[StoredFile, ...]


def bundles(scan_root: ScanRoot, files: Sequence[ScanResult], beside: Iterable[ScanResult] = ()) -> Iterator[Bundle]:
    """The models among `files`, which lie in one folder; `beside` are files below it that may belong to them."""
    weights, helpers = [], []
    for each in files:
        name = read_file_name(each.path.name)
        if name.kind == "weights" and scan_root.is_model(each):
            weights.append(_Named(each, name))
        elif name.kind in ("projector", "vision", "adapter"):
            helpers.append(_Named(each, name))
        elif each.path.suffix.lower() in (".gguf", ".rkllm") and name.kind == "other":
            scan_root.skip(each.path, "is no model by its name: quantisers and tests use such files")
    found = list(_whole(scan_root, weights))
    bases = [parts[0].name.base for parts in found]
    owners = {each.found: _owners(each, set(bases)) for each in helpers}
    used: set[ScanResult] = set()
    for parts, base in zip(found, bases, strict=True):
        own = [each for each in helpers if _belongs(each, parts[0], base in owners[each.found])]
        used |= {each.found for each in own}
        yield _bundle(parts, own, _tokenizer(parts[0], [*files, *beside]))
    for helper in helpers:
        if helper.found not in used:
            scan_root.skip(
                helper.found.path, "belongs to a model that is not beside it; put it there, or name it in a Modelfile"
            )


def with_tags(found: Sequence[Bundle], *, of_one_repository: bool) -> list[Bundle]:
    """Those that would have one name told apart by their whole file names. In a repository the tag alone does it."""

    def called(bundle: Bundle) -> tuple[str, str]:
        return "" if of_one_repository else bundle.base.casefold(), bundle.tag.casefold()

    count = Counter(map(called, found))
    return [replace(each, tag=name_part(each.stem)) if count[called(each)] > 1 else each for each in found]


@dataclass(frozen=True, slots=True)
class _Named:
    found: ScanResult
    name: FileName

    @property
    def converted(self) -> bool:
        """For an NPU, that is."""
        return self.name.format != "gguf"


def _whole(scan_root: ScanRoot, weights: Sequence[_Named]) -> Iterator[list[_Named]]:
    """Each model's parts in their order: of most one, of split ones all, or none where some are missing."""
    split: dict[tuple[str, int], dict[int, _Named]] = {}
    for each in weights:
        if each.name.shard is None or each.converted:
            yield [each]
        else:
            number, count = each.name.shard
            split.setdefault((each.name.stem, count), {})[number] = each
    for (_, count), parts in split.items():
        if sorted(parts) == list(range(1, min(count, _MOST_PARTS) + 1)):
            yield [parts[number] for number in sorted(parts)]
        else:
            first = parts[min(parts)].found.path
            scan_root.skip(first, f"has {len(parts)} of {count} parts; download the others into its folder")


def _owners(helper: _Named, bases: Collection[str]) -> Collection[str]:
    """The models that a projector's or an encoder's name says: of "qwen" and "qwen2-vl" the longer one. Where it says
    none, the only one that there is."""
    stem = helper.name.stem.casefold()
    named = {base: base.casefold() for base in bases if base.casefold() in stem}
    longest = [base for base, folded in named.items() if not any(folded in o != folded for o in named.values())]
    return longest or (bases if len(bases) == 1 else ())


def _belongs(helper: _Named, first: _Named, named: bool) -> bool:
    """Whether a projector, encoder or adapter goes with these weights; `named`: its name says their model."""
    if helper.converted != first.converted:
        return False
    if helper.name.kind == "adapter":
        return helper.name.stem.casefold().startswith(first.name.stem.casefold())
    return named


def _tokenizer(first: _Named, files: Sequence[ScanResult]) -> list[ScanResult]:
    """Of each file that belongs to a tokenizer the nearest: engines look in the same order."""
    if not first.converted:
        return []
    chosen: dict[str, ScanResult] = {}
    for near in companion_folders(first.found.path):
        for each in files:
            if each.path.parent == near and each.path.name in (*_TOKENIZER_FILES, *_TEMPLATE_FILES):
                chosen.setdefault(each.path.name, each)
    return list(chosen.values())


def _bundle(parts: Sequence[_Named], helpers: Sequence[_Named], tokenizer: Sequence[ScanResult]) -> Bundle:
    first = parts[0].name
    form: FileFormat = "rkllm" if parts[0].converted else "gguf"
    kind, chip = first.quantization, first.chip if parts[0].converted else ""
    files = [stored(each.found, "weights", form, quantization=kind, chip=chip) for each in parts]
    files += [_helper(each) for each in helpers]
    files += [_text(each) for each in tokenizer]
    return Bundle(
        base=first.base,
        stem=first.stem,
        tag="-".join(filter(None, (chip.lower(), kind))) or "latest",
        first=parts[0].found,
        files=_with_own_names(files),
    )


def _helper(helper: _Named) -> StoredFile:
    name = helper.name
    if name.kind == "vision":
        return stored(helper.found, "vision", "rknn", chip=name.chip)
    role: Role = "adapter" if name.kind == "adapter" else "projector"
    form: FileFormat = "rkllm" if helper.converted else "gguf"
    return stored(helper.found, role, form, quantization=name.quantization)


def _text(found: ScanResult) -> StoredFile:
    role: Role = "template" if found.path.name in _TEMPLATE_FILES else "tokenizer"
    return stored(found, role, "json" if found.path.suffix == ".json" else "text")


def _with_own_names(files: Sequence[StoredFile]) -> tuple[StoredFile, ...]:
    """One file of each name: those that differ by case alone cannot lie in one folder everywhere."""
    return tuple({each.name.casefold(): each for each in reversed(files)}.values())[::-1]


def files_below(scan_root: ScanRoot, folder: Path, names: Sequence[str]) -> list[ScanResult]:
    """The plain files in those folders below it."""
    entries = [entry for name in names for entry in scan_root.entries(folder / name)]
    found = [scan_root.file(Path(entry.path)) for entry in entries if not entry.is_dir(follow_symlinks=False)]
    return [each for each in found if each]
