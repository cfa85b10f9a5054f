"""What stands below the figures in a report: quality, answers, failures, warnings, and what was measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trilithon.language import Message
from trilithon.measure.records import Campaign, PlacementRecord, QualityRecord, Run, Sample
from trilithon.results.compare import ComparisonRow, counted_runs
from trilithon.results.phrases import Phrases
from trilithon.results.report.markup import Html, element, joined, rows_of_cells, table, trusted
from trilithon.results.table import quality_text, sensor_lines
from trilithon.units import format_bytes, format_number

__all__ = ["answers", "badge", "explanation", "failures", "measured", "quality", "remarks", "sensors", "warnings"]

# With HTML's marks; ours alone.
_EXPLANATION = (
    Message(
        "<b>Prefill (pp512)</b> is reading a prompt of 512 tokens, <b>decode (tg128)</b> writing 128 tokens, as "
        "llama-bench defines them: random tokens, an empty cache unless a depth is stated, and a warm-up that does not "
        "count."
    ),
    Message(
        "<b>A run</b> is one placement in one round, and each round runs every placement once, so that heat and other "
        "load meet all alike. The median is over runs; the interval is a 95% bootstrap interval of that median."
    ),
    Message(
        "<b>Thinking</b> ends at the first visible word. Words are counted by Unicode’s rules for text segmentation."
    ),
    Message(
        "<b>Of bandwidth</b> is the share of this machine’s measured memory bandwidth that decode takes when every "
        "weight is read once per token. Near 100%, only a smaller file can be faster."
    ),
    Message("<b>Quality</b> stands beside speed: a placement whose answers are broken has no speed worth having."),
)
_SIZES = ("_bytes", "bytes_per_token")
# Of what is stored about every campaign, as `_named` writes them; other names stay in English, and so do the values.
_FACT_NAMES = frozenset(
    (
        *(
            Message("Kind"),
            Message("Cause"),
            Message("Advice"),
            Message("Name"),
            Message("File"),
            Message("Parameters"),
        ),
        *(Message("Architecture"), Message("Quantization"), Message("Size"), Message("Bytes per token")),
        *(Message("Synthetic"), Message("Description"), Message("Board"), Message("Chip"), Message("Kernel")),
        *(Message("Governors"), Message("Top clocks"), Message("Memory clock governor"), Message("Memory bandwidth")),
        *(Message("Memory limit"), Message("CPU quota"), Message("CPU set")),
    )
)


def badge(record: QualityRecord | None, phrases: Phrases) -> Html:
    verdict = quality_text(record)
    return element("span", quality_text(record, phrases), class_=f"badge {verdict}")


def quality(campaign: Campaign, phrases: Phrases) -> Html:
    """Empty where no placement's quality was looked at."""
    judged = [(placement.name, placement.quality) for placement in campaign.placements if placement.quality]
    if not judged:
        return Html("")
    texts = (
        *(Message("Placement"), Message("Verdict"), Message("KL divergence"), Message("Same top token")),
        *(Message("Perplexity"), Message("Positions"), Message("Reasons")),
    )
    heads = list(map(phrases.text, texts))
    body = rows_of_cells(heads, ((name, *_quality_cells(record, phrases)) for name, record in judged))
    references = ", ".join(sorted({record.reference for _, record in judged}))
    return _section(
        phrases.text(Message("Are the answers still correct?")),
        element(
            "p",
            phrases.text(
                Message(
                    "The next-token distributions of each placement, compared with those of {references} on the same "
                    "text. The divergence is in nats per token, 0 when they are equal.",
                    references=references,
                )
            ),
        ),
        table(phrases.text(Message("Quality of each placement")), heads, body),
    )


def _quality_cells(record: QualityRecord, phrases: Phrases) -> tuple[str, ...]:
    agreement = "–" if record.agreement is None else f"{record.agreement:.0%}"
    return (
        badge(record, phrases),
        _divergence(record, phrases),
        phrases.number(agreement),
        "–" if record.perplexity is None else phrases.number(format_number(record.perplexity)),
        str(record.positions) if record.positions else "–",
        "; ".join(map(phrases.text, record.reasons)),
    )


def _divergence(record: QualityRecord, phrases: Phrases) -> str:
    parts = {phrases("prefill"): record.divergence_prefill, phrases("decode"): record.divergence_decode}
    known = ", ".join(
        f"{name} {phrases.number(format_number(value))}" for name, value in parts.items() if value is not None
    )
    mean = "–" if record.divergence is None else phrases.number(format_number(record.divergence))
    return f"{mean} ({known})" if known else mean


def answers(campaign: Campaign, phrases: Phrases) -> Html:
    """The last answer of each placement to each question."""
    by_question: dict[str, dict[str, Sample]] = {}
    for run in campaign.runs:
        for sample in run.samples:
            if sample.test.kind == "question":
                by_question.setdefault(sample.test.question, {})[run.placement] = sample
    parts: list[str] = []
    for question, samples in by_question.items():
        parts.append(element("p", phrases.text(Message("Question:")), " ", element("q", question, dir="auto")))
        for placement, sample in samples.items():
            parts += [element("h3", placement), _thinking(sample, phrases), _answer(sample, phrases)]
    return _section(phrases.text(Message("Answers")), *parts) if parts else Html("")


def _thinking(sample: Sample, phrases: Phrases) -> Html:
    if not sample.thinking_text:
        return Html("")
    said = element("div", sample.thinking_text, class_="said", dir="auto")
    return element("details", element("summary", phrases.text(Message("Thinking"))), said)


def _answer(sample: Sample, phrases: Phrases) -> Html:
    if not sample.answer_text.strip():
        return element("p", phrases.text(Message("No visible answer.")), class_="muted")
    return element("div", sample.answer_text.strip(), class_="said", dir="auto")


def failures(campaign: Campaign, phrases: Phrases) -> Html:
    """Each different failure once, with the runs that it ended."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in counted_runs(campaign):
        if run.outcome != "finished":
            message = run.failure.message if run.failure else ""
            groups.setdefault((run.placement, run.outcome, message), []).append(run)
    parts = [
        part for (placement, outcome, _), runs in groups.items() for part in _failure(placement, outcome, runs, phrases)
    ]
    return _section(phrases.text(Message("What failed")), *parts) if parts else Html("")


def _failure(placement: str, outcome: str, runs: Sequence[Run], phrases: Phrases) -> Iterator[Html]:
    text = f"{phrases(f'status_{outcome}')}, {phrases.text(_runs(len(runs)))}"
    yield element("h3", placement, " ", element("span", text, class_="badge failed"))
    failure = runs[-1].failure
    if failure is None:
        return
    yield element("p", failure.message, lang=_english_in(phrases))
    facts = {"kind": failure.kind, "cause": failure.cause, "advice": failure.advice}
    yield _facts({name: fact for name, fact in facts.items() if fact}, phrases)
    if failure.last_words:
        yield element("p", phrases.text(Message("Last output:")), class_="muted")
        yield element("pre", "\n".join(failure.last_words))


def warnings(campaign: Campaign, phrases: Phrases) -> Html:
    """What disturbed the runs."""
    return _told(Message("Warnings"), ((run.placement, run.warnings) for run in counted_runs(campaign)), phrases)


def remarks(campaign: Campaign, phrases: Phrases) -> Html:
    """What else there is to know of the runs: settings that were given up, what could not be measured."""
    return _told(Message("Remarks"), ((run.placement, run.remarks) for run in counted_runs(campaign)), phrases)


def _told(title: str, of_runs: Iterable[tuple[str, Sequence[str]]], phrases: Phrases) -> Html:
    """Each different line once, with the placements whose runs it is about."""
    counts_by_line: dict[str, dict[str, int]] = {}
    for placement, lines in of_runs:
        for line in lines:
            counts = counts_by_line.setdefault(line, {})
            counts[placement] = counts.get(placement, 0) + 1
    items = [
        element("li", phrases.text(line), " ", element("span", f"({_placements(counts, phrases)})", class_="muted"))
        for line, counts in counts_by_line.items()
    ]
    return _section(phrases.text(title), element("ul", *items)) if items else Html("")


def sensors(rows: Sequence[ComparisonRow], phrases: Phrases) -> Html:
    """Temperature, clocks and energy while the figures were measured, a line per placement."""
    items = [element("li", line) for line in sensor_lines(rows, phrases)]
    return _section(phrases.text(Message("Sensors")), element("ul", *items)) if items else Html("")


def _placements(counts: Mapping[str, int], phrases: Phrases) -> str:
    return ", ".join(f"{name}: {phrases.text(_runs(count))}" for name, count in counts.items())


def _runs(count: int) -> Message:
    return Message("{count} run", plural="{count} runs", count=count)


def measured(campaign: Campaign, phrases: Phrases) -> Html:
    """Board, builds, settings, files, kernel and governors: what has to be equal for numbers to be compared."""
    texts = (Message("Placement"), Message("Engine and build"), Message("Unit"), Message("Settings"))
    heads = list(map(phrases.text, texts))
    builds = rows_of_cells(
        heads,
        (
            (p.name, *(element("span", cell, lang=_english_in(phrases)) for cell in (_build(p), p.unit, _settings(p))))
            for p in campaign.placements
        ),
    )
    files = {str(p.model.get("sha256") or p.model.get("name")): p.model for p in campaign.placements}
    parts = [table(phrases.text(Message("Builds and settings")), heads, builds)]
    parts += [
        element("h3", phrases.text(Message("Model file"))),
        *(_facts(_flat(model), phrases) for model in files.values()),
    ]
    parts += [
        element("h3", phrases.text(Message("Board"))),
        _facts(_alike(campaign) or _description(campaign), phrases),
    ]
    if campaign.board:
        details = element("summary", phrases.text(Message("All details")))
        parts.append(element("details", details, _facts(_flat(campaign.board), phrases)))
    notes = campaign.plan.get("notes")  # an import's: what its runs really are
    parts += [element("p", str(note), class_="muted") for note in (notes if isinstance(notes, list) else ())]
    return _section(phrases.text(Message("Measured")), *parts)


def explanation(phrases: Phrases) -> Html:
    """How to read the page."""
    items = (element("li", trusted(phrases.text(text))) for text in _EXPLANATION)
    return _section(phrases.text(Message("How to read this")), element("ul", *items))


def _english_in(phrases: Phrases) -> str | None:
    """The language of stored texts, where it is not the page's."""
    return None if phrases.language == "en" else "en"


def _build(placement: PlacementRecord) -> str:
    return f"{placement.engine} {placement.build_version} ({placement.build})"


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


def _facts(facts: Mapping[str, str], phrases: Phrases) -> Html:
    pairs = []
    for name, fact in facts.items():
        if fact:
            title = _named(name)
            pairs += [
                element("dt", phrases.text(title), lang=None if title in _FACT_NAMES else _english_in(phrases)),
                # A Message is a size.
                element("dd", phrases.text(fact), lang=None if isinstance(fact, Message) else _english_in(phrases)),
            ]
    return element("dl", *pairs) if pairs else Html("")


def _named(name: str) -> str:
    for ending in ("_bytes", "_hz"):
        name = name.removesuffix(ending)
    return name[:1].upper() + name[1:].replace("_", " ")


def _section(title: str, *content: str) -> Html:
    return element("section", element("h2", title), "\n", joined(content, "\n"))
