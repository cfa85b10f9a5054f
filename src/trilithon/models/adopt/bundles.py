"""Groups the files of a folder into models: weights, the parts of a split file, and their companions.

Names and sizes are used, and the beginning of each GGUF, which says whether it is a model. Whole headers are read when
a model is shown or run."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.models.adopt.scan_root import ScanResult, ScanRoot, stored
from trilithon.models.files.file_names import FileName, Kind, read_file_name
from trilithon.models.files.kinds import PROJECTORS, kind_of_beginning
from trilithon.models.files.rkllm import companion_folders
from trilithon.models.names import name_part
from trilithon.models.store.manifest import FileFormat, Role, StoredFile

__all__ = ["Bundle", "bundles", "files_below", "with_tags"]

# The files of a tokenizer of Hugging Face, and the template.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "preprocessor_config.json", "vision.json"),
)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_MOST_PARTS = 10_000
_BEGINNING_BYTES = 4096  # general metadata comes before the vocabulary
_NO_MODEL = "is not a model by its name: quantisers and tests use such files"
_ALONE = dict.fromkeys(
    ("projector", "vision"), "belongs to a model in another folder; move it there, or name it in a Modelfile"
) | {"adapter": "is a LoRA adapter: no engine runs it alone; name it with ADAPTER in a Modelfile, its model with FROM"}
_HELPERS: Mapping[str, Kind] = {"adapter": "adapter", **dict.fromkeys(PROJECTORS, "projector")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One model. `base` is its name without quantisation and chip, `stem` its file name without suffix, `tag` what
    distinguishes it from other models of that name, `first` the first file of its weights."""

    base: str
    stem: str
    tag: str
    first: ScanResult
    files: tuple[StoredFile, ...]


def bundles(scan_root: ScanRoot, files: Sequence[ScanResult], below: Iterable[ScanResult] = ()) -> Iterator[Bundle]:
    """The models among the `files` of one folder; `below` are files in its subfolders that may belong to them."""
    weights, helpers = [], []
    for file in files:
        name = _named(scan_root, file)
        if name is None:
            continue
        if name.kind == "weights" and scan_root.is_model(file):
            weights.append(_NamedFile(file, name))
        elif name.kind in ("projector", "vision", "adapter"):
            helpers.append(_NamedFile(file, name))
        elif file.path.suffix.lower() in (".gguf", ".rkllm") and name.kind == "other":
            scan_root.skip(file.path, _NO_MODEL)
        elif name.kind == "draft":
            scan_root.skip(file.path, "is a draft head for speculative decoding by its name: no engine runs it alone")
    models = list(_complete(scan_root, weights))
    bases = [parts[0].name.base for parts in models]
    owners = {helper.file: _owners(helper, set(bases)) for helper in helpers}
    used: set[ScanResult] = set()
    for parts, base in zip(models, bases, strict=True):
        matching = [helper for helper in helpers if _belongs(helper, parts[0], base in owners[helper.file])]
        used |= {helper.file for helper in matching}
        yield _bundle(parts, matching, _tokenizer(parts[0], [*files, *below]))
    for helper in helpers:
        if helper.file not in used:
            scan_root.skip(helper.file.path, _ALONE[helper.name.kind])


def _named(scan_root: ScanRoot, file: ScanResult) -> FileName | None:
    """What a file is by its name, unless its beginning says otherwise; None for what is neither a model nor belongs to
    one, which is skipped."""
    name = read_file_name(file.path.name)
    if name.format != "gguf" or name.kind == "draft":  # a draft head has the metadata of its model
        return name
    kind = kind_of_beginning(scan_root.read(file, _BEGINNING_BYTES) or b"")
    if kind is None:
        return name
    if kind.problem and kind.name not in _HELPERS:
        scan_root.skip(file.path, f"is {kind.label}: {kind.problem}")
        return None
    return replace(name, kind=_HELPERS.get(kind.name, "weights"))


def with_tags(models: Sequence[Bundle], *, of_one_repository: bool) -> list[Bundle]:
    """Give models of the same name a tag with their whole file name. In a repository the tag alone has to differ."""

    def key(bundle: Bundle) -> tuple[str, str]:
        return "" if of_one_repository else bundle.base.casefold(), bundle.tag.casefold()

    count = Counter(map(key, models))
    return [replace(model, tag=name_part(model.stem)) if count[key(model)] > 1 else model for model in models]


@dataclass(frozen=True, slots=True)
class _NamedFile:
    file: ScanResult
    name: FileName

    @property
    def converted(self) -> bool:
        """Whether it was converted for an NPU."""
        return self.name.format != "gguf"


def _complete(scan_root: ScanRoot, weights: Sequence[_NamedFile]) -> Iterator[list[_NamedFile]]:
    """The parts of each model in order: usually one, and all of a split model. Incomplete ones are skipped."""
    split: dict[tuple[str, int], dict[int, _NamedFile]] = {}
    for file in weights:
        if file.name.shard is None or file.converted:
            yield [file]
        else:
            number, count = file.name.shard
            split.setdefault((file.name.stem, count), {})[number] = file
    for (_, count), parts in split.items():
        if sorted(parts) == list(range(1, min(count, _MOST_PARTS) + 1)):
            yield [parts[number] for number in sorted(parts)]
        else:
            first = parts[min(parts)].file.path
            scan_root.skip(first, f"has {len(parts)} of {count} parts; download the others into its folder")


def _owners(helper: _NamedFile, bases: Collection[str]) -> Collection[str]:
    """The models that the name of a projector or an encoder mentions: of "qwen" and "qwen2-vl" the longer one. If it
    mentions none, the only model."""
    stem = helper.name.stem.casefold()
    named = {base: base.casefold() for base in bases if base.casefold() in stem}
    longest = [base for base, folded in named.items() if not any(folded in o != folded for o in named.values())]
    return longest or (bases if len(bases) == 1 else ())


def _belongs(helper: _NamedFile, first: _NamedFile, named: bool) -> bool:
    """Whether a projector, encoder or adapter belongs to these weights; `named` means that its name mentions them."""
    if helper.converted != first.converted:
        return False
    if helper.name.kind == "adapter":
        return helper.name.stem.casefold().startswith(first.name.stem.casefold())
    return named


def _tokenizer(first: _NamedFile, files: Sequence[ScanResult]) -> list[ScanResult]:
    """The nearest of each file of a tokenizer, in the order in which engines look for them."""
    if not first.converted:
        return []
    chosen: dict[str, ScanResult] = {}
    for folder in companion_folders(first.file.path):
        for file in files:
            if file.path.parent == folder and file.path.name in (*_TOKENIZER_FILES, *_TEMPLATE_FILES):
                chosen.setdefault(file.path.name, file)
    return list(chosen.values())


def _bundle(parts: Sequence[_NamedFile], helpers: Sequence[_NamedFile], tokenizer: Sequence[ScanResult]) -> Bundle:
    first = parts[0].name
    form: FileFormat = "rkllm" if parts[0].converted else "gguf"
    kind, chip = first.quantization, first.chip if parts[0].converted else ""
    files = [stored(part.file, "weights", form, quantization=kind, chip=chip) for part in parts]
    files += [_helper(helper) for helper in helpers]
    files += [_text(text) for text in tokenizer]
    return Bundle(
        base=first.base,
        stem=first.stem,
        tag="-".join(filter(None, (chip.lower(), kind))) or "latest",
        first=parts[0].file,
        files=_with_unique_names(files),
    )


def _helper(helper: _NamedFile) -> StoredFile:
    name = helper.name
    if name.kind == "vision":
        return stored(helper.file, "vision", "rknn", chip=name.chip)
    role: Role = "adapter" if name.kind == "adapter" else "projector"
    form: FileFormat = "rkllm" if helper.converted else "gguf"
    return stored(helper.file, role, form, quantization=name.quantization)


def _text(file: ScanResult) -> StoredFile:
    role: Role = "template" if file.path.name in _TEMPLATE_FILES else "tokenizer"
    return stored(file, role, "json" if file.path.suffix == ".json" else "text")


def _with_unique_names(files: Sequence[StoredFile]) -> tuple[StoredFile, ...]:
    """The first file of each name: not all file systems allow names that differ by case alone."""
    return tuple({file.name.casefold(): file for file in reversed(files)}.values())[::-1]


def files_below(scan_root: ScanRoot, folder: Path, names: Sequence[str]) -> list[ScanResult]:
    """The plain files in these subfolders of a folder."""
    entries = [entry for name in names for entry in scan_root.entries(folder / name)]
    files = [scan_root.file(Path(entry.path)) for entry in entries if not entry.is_dir(follow_symlinks=False)]
    return [file for file in files if file]
