"""Campaigns as one file that may be given away: complete, without what tells of the machine's owner.

The file is gzip with the JSON of `formats` in it: results, facts and logs. What is private is replaced in every text:
names of the host and its users, home folders, keys and addresses (`board.capture.redaction`), the folders of paths, and
the names and private addresses of other hosts. Numbers stay as measured, and so do the texts of questions and answers
but for the names of this machine."""

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address
from itertools import count
from pathlib import Path
from typing import Any

from trilithon.board.capture.redaction import COMMON_NAMES, Redactor
from trilithon.errors import UserError
from trilithon.files import replace_file
from trilithon.measure.records import AnswerRecord, Campaign, Failure, PlacementRecord, Run, Sample
from trilithon.results.formats import export_campaigns

__all__ = ["portable", "without_private_parts", "write_bundle", "write_text"]

# Folders whose names are the same on every machine; a path elsewhere may hold names of people and customers.
_PUBLIC = "sys|proc|dev|usr|lib|lib64|bin|sbin|etc|boot"
_PART = r"[^/\s:,;\"'()\[\]<>|=]"
# Not the path of a URL with a host.
_PATH = re.compile(rf"(?:(?<![\w.…/-])|(?<=://))/(?!(?:{_PUBLIC})/)(?:{_PART}+/)+{_PART}*")
_URL = r"(?P<scheme>https?://)(?:[^/\s\"']*@)?(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]*\w)"
_HOST = re.compile(_URL, re.IGNORECASE)
# What is replaced outside a URL, too: shorter names and plain numbers are parts of anything.
_WORD = re.compile(r"(?=.*[^\W\d]).{3,}|\d+(?:\.\d+){3}")
_LOCAL = re.compile(r"localhost|127\.[\d.]+|\[::1\]|0\.0\.0\.0|host-\d+")
_PRIVATE_HOST = re.compile(r"[^.]+|\[.*\]|[\d.]+|.*\.(?:local|lan|home|internal|intranet|localdomain|box|arpa)")
# RFC 1918, RFC 3927 and RFC 6598
_PRIVATE_ADDRESS = re.compile(
    r"(?<!\d)(?<!\d\.)(?:10\.\d{1,3}|192\.168|169\.254|172\.(?:1[6-9]|2\d|3[01])|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7]))"
    r"\.\d{1,3}\.\d{1,3}(?!\d|\.\d)"
)
# Eight groups, or fewer with "::" (RFC 4291): any one names a machine or its network
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[\da-f:]*::|(?:[\da-f]+:){6})[\da-f:]*(?:[\da-f](?:\.\d{1,3}){0,3}|::)(?!\w)", re.IGNORECASE
)
_LEAST_LENGTH = 6  # of a path that is replaced as a plain text: a shorter one may be part of anything


def write_bundle(campaigns: Sequence[Campaign], path: Path) -> None:
    """The same campaigns give the same bytes. The file is written whole or not at all; one that is there is replaced.
    Raises UserError where it cannot be written."""
    text = export_campaigns([_settled(campaign) for campaign in campaigns], "trilithon").text
    _write(gzip.compress(text.encode(), mtime=0), path)


def write_text(text: str, path: Path) -> None:
    """As `write_bundle`, for an export in another format."""
    _write(text.encode(errors="replace"), path)


def _write(content: bytes, path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # a pipe or a device, which must stay one
        else:
            replace_file(path, content, mode=None)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file with -o") from error


def _settled(campaign: Campaign) -> Campaign:
    """Without what only this database knows: the number, and whether it is being measured now."""
    return replace(campaign, id=0, status="interrupted" if campaign.status == "running" else campaign.status)


def portable(campaigns: Sequence[Campaign]) -> list[Campaign]:
    """The campaigns without private parts of this machine and its user. Once more changes nothing."""
    redactor = Redactor.of_this_user()
    return [without_private_parts(campaign, redactor) for campaign in campaigns]


def without_private_parts(campaign: Campaign, redactor: Redactor) -> Campaign:
    """Placements keep names of their own."""
    clean = _Cleaner(campaign, redactor)
    names = _unique({placement.name: clean(placement.name) for placement in campaign.placements})

    def named(name: str) -> str:
        return names.get(name) or clean(name)

    return replace(
        campaign,
        version=clean(campaign.version),
        board=clean.values(campaign.board),
        plan=clean.values(campaign.plan),
        placements=tuple(_placement(record, clean, named) for record in campaign.placements),
        runs=tuple(_run(run, clean, redactor, named) for run in campaign.runs),
    )


class _Cleaner:
    """Texts of one campaign: paths and hosts that its facts name are replaced wherever they stand."""

    def __init__(self, campaign: Campaign, redactor: Redactor):
        self.redactor = redactor
        facts = [
            campaign.board,
            campaign.plan,
            *((p.name, p.model, p.settings, p.must_match) for p in campaign.placements),
        ]
        paths = {text for text in _texts(facts) if _is_private_path(text)}
        longest_first = sorted((path for path in paths if len(path) >= _LEAST_LENGTH), key=len, reverse=True)
        known = "|".join(map(re.escape, longest_first))
        # With what stands before and behind it: a known folder may be part of a longer path.
        around = rf"(?:(?<!{_PART})(?<!/)(?:/{_PART}+)*?)?(?:{known})(?:/|{_PART})*"
        self._paths = re.compile(around) if known else None
        named = (match["host"] for text in _texts(facts) for match in _HOST.finditer(text))
        texts = (text for run in campaign.runs for text in (run.log, *run.warnings, *run.remarks))
        elsewhere = (match["host"] for text in texts for match in _HOST.finditer(text))
        hosts = [*named, *(host for host in elsewhere if _PRIVATE_HOST.fullmatch(host.lower()))]
        taken = {int(host[5:]) for host in hosts if re.fullmatch(r"host-\d{1,6}", host)}
        numbers = (number for number in count(1) if number not in taken)
        secret = dict.fromkeys(host.lower() for host in hosts if not _LOCAL.fullmatch(host.lower()))
        self._hosts = {host: f"host-{next(numbers)}" for host in secret}
        names = [host for host in secret if _WORD.fullmatch(host) and not COMMON_NAMES.fullmatch(host)]
        words = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        alone = rf"|(?<![A-Za-z0-9])(?P<name>{words})(?![A-Za-z0-9])" if words else "|(?P<name>(?!))"
        self._named = re.compile(_URL + alone, re.IGNORECASE)

    def __call__(self, text: str) -> str:
        if self._paths:
            text = self._paths.sub(self._shortened, text)
        text = self._named.sub(self._numbered, text)
        text = _PATH.sub(self._shortened, text)
        text = _PRIVATE_ADDRESS.sub("removed-address", self.redactor.text(text))
        return _IPV6.sub(_without_address, text)

    def _shortened(self, match: re.Match[str]) -> str:
        return f"…/{self.redactor.text(match[0]).rpartition('/')[2]}"

    def _numbered(self, match: re.Match[str]) -> str:
        host = match["host"] or match["name"]
        return (match["scheme"] or "") + self._hosts.get(host.lower(), host)

    def values(self, value: Any) -> Any:
        """The same JSON value with each text cleaned. Keys are the program's own words."""
        if isinstance(value, str):
            return self(_last_part(self.redactor.text(value)) if _is_private_path(value) else value)
        if isinstance(value, Mapping):
            return {name: self.values(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(item) for item in value]
        return value


def _is_private_path(text: str) -> bool:
    """Whether all of the text is a path, spaces and all, of a folder that is not the same everywhere."""
    is_path = text.startswith("/") and text.strip("/") and "\n" not in text and len(text) < 4096
    return bool(is_path) and not re.match(rf"/(?:{_PUBLIC})(?:/|$)", text)


def _without_address(match: re.Match[str]) -> str:
    try:
        address = IPv6Address(match[0])
    except ValueError:
        return match[0]
    return match[0] if address.is_loopback or address.is_unspecified else "removed-address"


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _unique(names: Mapping[str, str]) -> dict[str, str]:
    unique: dict[str, str] = {}
    for name, cleaned in names.items():
        free = (cleaned if number == 1 else f"{cleaned} ({number})" for number in count(1))
        unique[name] = next(text for text in free if text not in unique.values())
    return unique


def _placement(record: PlacementRecord, clean: _Cleaner, named: Callable[[str], str]) -> PlacementRecord:
    quality = record.quality
    if quality is not None:
        quality = replace(quality, reference=named(quality.reference), reasons=_all_cleaned(quality.reasons, clean))
    return replace(
        record,
        name=named(record.name),
        build=clean(record.build),
        build_version=clean(record.build_version),
        model=clean.values(record.model),
        settings=clean.values(record.settings),
        must_match=clean.values(record.must_match),
        quality=quality,
        answers=tuple(_answer(answer, clean) for answer in record.answers),
    )


def _answer(answer: AnswerRecord, clean: _Cleaner) -> AnswerRecord:
    """As a sample's: a question about a path keeps it."""
    names = ("text", "expected", "answer", "thinking")
    texts: dict[str, Any] = {name: clean.redactor.text(getattr(answer, name)) for name in names}
    return replace(answer, question_set=clean(answer.question_set), reason=clean(answer.reason), **texts)


def _run(run: Run, clean: _Cleaner, redactor: Redactor, named: Callable[[str], str]) -> Run:
    return replace(
        run,
        placement=named(run.placement),
        samples=tuple(_sample(sample, redactor) for sample in run.samples),
        failure=_failure(run.failure, clean) if run.failure else None,
        warnings=_all_cleaned(run.warnings, clean),
        remarks=_all_cleaned(run.remarks, clean),
        log=clean(run.log),
    )


def _sample(sample: Sample, redactor: Redactor) -> Sample:
    """A question about a path keeps it: words are counted."""
    return replace(
        sample,
        test=replace(sample.test, question=redactor.text(sample.test.question)),
        thinking_text=redactor.text(sample.thinking_text),
        answer_text=redactor.text(sample.answer_text),
    )


def _failure(failure: Failure, clean: _Cleaner) -> Failure:
    return replace(
        failure,
        message=clean(failure.message),
        cause=clean(failure.cause),
        advice=clean(failure.advice),
        last_words=_all_cleaned(failure.last_words, clean),
    )


def _all_cleaned(texts: Iterable[str], clean: _Cleaner) -> tuple[str, ...]:
    return tuple(map(clean, texts))
