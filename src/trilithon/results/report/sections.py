"""What stands below the figures in a report: quality, answers, failures, warnings, and what was measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trilithon.measure.records import Campaign, PlacementRecord, QualityRecord, Run, Sample
from trilithon.results.compare import ComparisonRow
from trilithon.results.report.markup import Html, element, joined, rows_of_cells, table
from trilithon.results.table import quality_text, sensor_lines
from trilithon.units import format_bytes, format_number

__all__ = ["answers", "badge", "failures", "measured", "quality", "remarks", "sensors", "warnings"]

_SIZES = ("_bytes", "bytes_per_token")


def badge(record: QualityRecord | None) -> Html:
    verdict = quality_text(record)
    return element("span", verdict, class_=f"badge {verdict}")


def quality(campaign: Campaign) -> Html:
    """Empty where no placement's quality was looked at."""
    judged = [(placement.name, placement.quality) for placement in campaign.placements if placement.quality]
    if not judged:
        return Html("")
    heads = ("Placement", "Verdict", "KL divergence", "Same top token", "Perplexity", "Positions", "Reasons")
    body = rows_of_cells(heads, ((name, *_quality_cells(record)) for name, record in judged))
    references = ", ".join(sorted({record.reference for _, record in judged}))
    return _section(
        "Are the answers still correct?",
        element(
            "p",
            f"The next-token distributions of each placement, compared with those of {references} on the same text. "
            "The divergence is in nats per token, 0 when they are equal.",
        ),
        table("Quality of each placement", heads, body),
    )


def _quality_cells(record: QualityRecord) -> tuple[str, ...]:
    agreement = "–" if record.agreement is None else f"{record.agreement:.0%}"
    return (
        badge(record),
        _divergence(record),
        agreement,
        "–" if record.perplexity is None else format_number(record.perplexity),
        str(record.positions) if record.positions else "–",
        "; ".join(record.reasons),
    )


def _divergence(record: QualityRecord) -> str:
    parts = {"prefill": record.divergence_prefill, "decode": record.divergence_decode}
    known = ", ".join(f"{name} {format_number(value)}" for name, value in parts.items() if value is not None)
    mean = "–" if record.divergence is None else format_number(record.divergence)
    return f"{mean} ({known})" if known else mean


def answers(campaign: Campaign) -> Html:
    """The last answer of each placement to each question."""
    by_question: dict[str, dict[str, Sample]] = {}
    for run in campaign.runs:
        for sample in run.samples:
            if sample.test.kind == "question":
                by_question.setdefault(sample.test.question, {})[run.placement] = sample
    parts: list[str] = []
    for question, samples in by_question.items():
        parts.append(element("p", "Asked: ", element("q", question, dir="auto")))
        for placement, sample in samples.items():
            parts += [element("h3", placement), _thinking(sample), _answer(sample)]
    return _section("Answers", *parts) if parts else Html("")


def _thinking(sample: Sample) -> Html:
    if not sample.thinking_text:
        return Html("")
    said = element("div", sample.thinking_text, class_="said", dir="auto")
    return element("details", element("summary", "Thinking"), said)


def _answer(sample: Sample) -> Html:
    if not sample.answer_text.strip():
        return element("p", "No visible answer.", class_="muted")
    return element("div", sample.answer_text.strip(), class_="said", dir="auto")


def failures(campaign: Campaign) -> Html:
    """Each different failure once, with the runs that it ended."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in campaign.runs:
        if run.outcome != "finished":
            message = run.failure.message if run.failure else ""
            groups.setdefault((run.placement, run.outcome, message), []).append(run)
    parts = [part for (placement, outcome, _), runs in groups.items() for part in _failure(placement, outcome, runs)]
    return _section("What failed", *parts) if parts else Html("")


def _failure(placement: str, outcome: str, runs: Sequence[Run]) -> Iterator[Html]:
    yield element(
        "h3", placement, " ", element("span", f"{outcome}, {_count(len(runs), 'run')}", class_="badge failed")
    )
    failure = runs[-1].failure
    if failure is None:
        return
    yield element("p", failure.message)
    facts = {"kind": failure.kind, "cause": failure.cause, "advice": failure.advice}
    yield _facts({name: fact for name, fact in facts.items() if fact})
    if failure.last_words:
        yield element("p", "Last output:", class_="muted")
        yield element("pre", "\n".join(failure.last_words))


def warnings(campaign: Campaign) -> Html:
    """What disturbed the runs."""
    return _told("Warnings", ((run.placement, run.warnings) for run in campaign.runs))


def remarks(campaign: Campaign) -> Html:
    """What else there is to know of the runs: settings that were given up, what could not be measured."""
    return _told("Remarks", ((run.placement, run.remarks) for run in campaign.runs))


def _told(title: str, of_runs: Iterable[tuple[str, Sequence[str]]]) -> Html:
    """Each different line once, with the placements whose runs it is about."""
    counts_by_line: dict[str, dict[str, int]] = {}
    for placement, lines in of_runs:
        for line in lines:
            counts = counts_by_line.setdefault(line, {})
            counts[placement] = counts.get(placement, 0) + 1
    items = [
        element("li", line, " ", element("span", f"({_placements(counts)})", class_="muted"))
        for line, counts in counts_by_line.items()
    ]
    return _section(title, element("ul", *items)) if items else Html("")


def sensors(rows: Sequence[ComparisonRow]) -> Html:
    """Temperature, clocks and energy while the figures were measured, a line per placement."""
    items = [element("li", line) for line in sensor_lines(rows)]
    return _section("Sensors", element("ul", *items)) if items else Html("")


def _placements(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {_count(count, 'run')}" for name, count in counts.items())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def measured(campaign: Campaign) -> Html:
    """Board, builds, settings, files, kernel and governors: what has to be equal for numbers to be compared."""
    heads = ("Placement", "Engine and build", "Unit", "Settings")
    builds = rows_of_cells(
        heads,
        ((p.name, f"{p.engine} {p.build_version} ({p.build})", p.unit, _settings(p)) for p in campaign.placements),
    )
    files = {str(p.model.get("sha256") or p.model.get("name")): p.model for p in campaign.placements}
    parts = [table("Builds and settings", heads, builds)]
    parts += [element("h3", "Model file"), *(_facts(_flat(model)) for model in files.values())]
    parts += [element("h3", "Board"), _facts(_alike(campaign) or _description(campaign))]
    if campaign.board:
        parts.append(element("details", element("summary", "All details"), _facts(_flat(campaign.board))))
    notes = campaign.plan.get("notes")  # an import's: what its runs really are
    parts += [element("p", str(note), class_="muted") for note in (notes if isinstance(notes, list) else ())]
    return _section("Measured", *parts)


def _settings(placement: PlacementRecord) -> str:
    return " · ".join(f"{name.replace('_', ' ')} {text}" for name, text in _flat(placement.settings).items())


def _description(campaign: Campaign) -> dict[str, str]:
    return {"description": str(campaign.board["description"])} if campaign.board.get("description") else {}


def _alike(campaign: Campaign) -> dict[str, str]:
    """The facts of the machine that all placements share; the others stand with the build or the file."""
    first = campaign.placements[0].must_match if campaign.placements else {}
    shared = {
        name: fact
        for name, fact in first.items()
        if name not in ("build", "file", "settings")
        and all(placement.must_match.get(name) == fact for placement in campaign.placements)
    }
    rates = {p.bandwidth_bytes_per_second for p in campaign.placements if p.bandwidth_bytes_per_second}
    if rates:
        shared["memory bandwidth"] = ", ".join(f"{rate / 1e9:.1f} GB/s" for rate in sorted(rates)) + ", measured here"
    return _description(campaign) | shared


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level of text, without those that are unknown."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path} ")
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            for index, one in enumerate(value):
                flat |= _flat({str(index + 1): one}, f"{path} ")
        elif value is not None:
            flat[path] = _fact(path, value)
    return flat


def _fact(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(_SIZES):
        return format_bytes(value)
    if isinstance(value, int) and name.endswith("_hz"):
        return f"{value / 1e6:.0f} MHz"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _facts(facts: Mapping[str, str]) -> Html:
    known = ((name, fact) for name, fact in facts.items() if fact)
    pairs = [part for name, fact in known for part in (element("dt", _named(name)), element("dd", fact))]
    return element("dl", *pairs) if pairs else Html("")


def _named(name: str) -> str:
    for ending in ("_bytes", "_hz"):
        name = name.removesuffix(ending)
    return name[:1].upper() + name[1:].replace("_", " ")


def _section(title: str, *content: str) -> Html:
    return element("section", element("h2", title), "\n", joined(content, "\n"))
