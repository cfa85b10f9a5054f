"""What an article compares: every placement of several campaigns, named by what differs between them and by no more."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from trilithon.errors import UserError
from trilithon.measure.metrics import HEADLINE, METRICS, Metric
from trilithon.measure.questions import score_of
from trilithon.measure.records import Campaign, PlacementRecord, QualityRecord, Run, Test
from trilithon.results.compare import counted_runs, measured_tests, run_values, runs_note
from trilithon.results.conditions import conditions_of
from trilithon.results.phrases import Phrases
from trilithon.results.simulated import simulation

__all__ = ["BY", "By", "Column", "ComparedPlacement", "Spread", "labelled", "named", "subjects_of"]

By = Literal["board", "model", "quantization", "engine", "build"]
BY: tuple[By, ...] = get_args(By)
_QUESTION = ("thinking_seconds", "words", "words_per_second", "total_seconds")
_SETTINGS = ("threads", "context", "batch", "micro_batch", "kv_type_k", "kv_type_v", "flash_attention", "speculation")


@dataclass(frozen=True, slots=True)
class Column:
    """A figure that several placements have: the metric of a test; of a set of questions, whose `digest` is there, the
    score."""

    test: Test
    metric: Metric
    digest: str = ""

    @property
    def name(self) -> str:
        if self.digest:
            return f"{self.metric.name} {self.test.question}"
        return self.test.name if self.test.kind in ("pp", "tg", "pg") else self.metric.name


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over runs, and the least and the most of them."""

    median: float
    least: float
    most: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPlacement:
    """One placement of one campaign. `spec` is its name there; `placement` what it is called beside the others."""

    campaign: Campaign
    record: PlacementRecord
    board: str
    model: str
    quantization: str
    engine: str
    build: str
    unit: str
    placement: str
    figures: Mapping[str, Spread]
    joules_per_token: float | None
    simulated: str
    note: str

    @property
    def spec(self) -> str:
        return self.record.spec

    @property
    def quality(self) -> QualityRecord | None:
        return self.record.quality

    def value(self, name: str) -> str:
        """Of one of the things that subjects are put into groups by, or "placement"."""
        return str(getattr(self, name))


def subjects_of(campaigns: Sequence[Campaign], phrases: Phrases) -> tuple[list[ComparedPlacement], list[Column]]:
    """Every placement that was measured, in order, and the figures that they have, the usual ones first."""
    boards = _boards(campaigns, phrases)
    columns = _columns(campaigns)
    subjects = [
        _subject(campaign, record, board, columns, phrases)
        for campaign, board in zip(campaigns, boards, strict=True)
        for record in campaign.placements
    ]
    kept = [column for column in columns if any(column.name in subject.figures for subject in subjects)]
    return named(subjects), kept


def _columns(campaigns: Sequence[Campaign]) -> list[Column]:
    tests = dict.fromkeys(test for campaign in campaigns for test in measured_tests(campaign))
    columns: dict[str, Column] = {}
    for kind in ("pp", "tg", "pg"):
        for test in sorted((test for test in tests if test.kind == kind), key=lambda test: test.depth):
            metric = next(metric for metric in METRICS[test.kind] if metric.name == HEADLINE[test.kind])
            columns.setdefault(test.name, Column(test, metric))
    question = next((test for test in tests if test.kind == "question"), None)
    if question is not None:
        columns |= {metric.name: Column(question, metric) for metric in METRICS["question"] if metric.name in _QUESTION}
    answers = [answer for campaign in campaigns for record in campaign.placements for answer in record.answers]
    sets = dict.fromkeys((answer.question_set, answer.set_digest) for answer in answers)
    names = Counter(name for name, _ in sets)
    for name, digest in sets:
        test = Test(kind="questions", question=f"{name} {digest}" if names[name] > 1 else name)
        columns[f"{name} {digest}"] = Column(test, METRICS["questions"][0], digest)
    return list(columns.values())


def _subject(
    campaign: Campaign, record: PlacementRecord, board: str, columns: Sequence[Column], phrases: Phrases
) -> ComparedPlacement:
    measured = replace(campaign, runs=tuple(run for run in campaign.runs if run.placement == record.name))
    figures = {column.name: figure for column in columns if (figure := _figure(measured, record, column))}
    decode = next((column.test for column in columns if column.test.kind == "tg"), None)
    conditions = conditions_of(measured, record.name, decode) if decode else None
    return ComparedPlacement(
        campaign=campaign,
        record=record,
        board=board,
        model=str(record.model.get("name") or phrases("no_model")),
        quantization=str(record.model.get("quantization") or ""),
        engine=record.engine,
        build=" ".join(filter(None, (record.engine, record.build_version or record.build))),
        unit="handover" if any(name.startswith("prefill ") for name in record.must_match) else record.unit,
        placement=record.spec,
        figures=figures,
        joules_per_token=conditions.joules_per_generated_token if conditions else None,
        simulated=simulation(campaign, record),
        note="" if figures else runs_note(campaign, record.name, phrases=phrases) or phrases("no_result"),
    )


def _figure(campaign: Campaign, record: PlacementRecord, column: Column) -> Spread | None:
    """Questions that differ are one column: what is asked is told once. The spread of a score is its interval, and its
    runs are questions."""
    if column.digest:
        score = score_of(answer for answer in record.answers if answer.set_digest == column.digest)
        return Spread(score.share * 100, score.low * 100, score.high * 100, score.count) if score else None
    tests = [column.test]
    if column.test.kind == "question":
        tests = [test for test in measured_tests(campaign) if test.kind == "question"]
    values = [value for test in tests for _, value in run_values(campaign, record.name, test, column.metric)]
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None


def _boards(campaigns: Sequence[Campaign], phrases: Phrases) -> list[str]:
    """One name per campaign: the board's, and where two machines share it, what else differs between them."""
    parts = [_board_parts(campaign, phrases) for campaign in campaigns]
    names = []
    for described in parts:
        alike = [other for other in parts if other[0] == described[0]]
        differing = [part for part in described[1:] if any(part not in other for other in alike)]
        names.append(" · ".join([described[0], *differing]))
    return names


def _board_parts(campaign: Campaign, phrases: Phrases) -> list[str]:
    described = [part for part in str(campaign.board.get("description") or "").split(" · ") if part]
    model = str(campaign.board.get("model") or "")
    first = model or (described[0] if described else phrases("unknown_board"))
    return [first, *(part for part in described if part != first)]


def named(subjects: Sequence[ComparedPlacement]) -> list[ComparedPlacement]:
    """Subjects that are alike in board, model and placement get what else differs in their names: settings, versions,
    at last the campaign's number."""
    groups: dict[tuple[str, ...], list[ComparedPlacement]] = {}
    for subject in subjects:
        key = (subject.board, subject.model, subject.quantization, subject.placement)
        groups.setdefault(key, []).append(subject)
    renamed: dict[int, ComparedPlacement] = {}
    for alike in groups.values():
        facts = [_distinguishing_facts(subject) for subject in alike] if len(alike) > 1 else [{}]
        differing = [name for name in facts[0] if len({one.get(name) for one in facts}) > 1]
        names = [", ".join(filter(None, (one.get(name, "") for name in differing))) for one in facts]
        counts = Counter(names)
        for subject, name in zip(alike, names, strict=True):
            parts = [name] if name else []
            parts += [f"#{subject.campaign.id}"] * (counts[name] > 1)
            full = f"{subject.placement} ({', '.join(parts)})" if parts else subject.placement
            renamed[id(subject)] = replace(subject, placement=full)
    return [renamed[id(subject)] for subject in subjects]


def _distinguishing_facts(subject: ComparedPlacement) -> dict[str, str]:
    settings = subject.record.settings
    words = {name: f"{name.replace('_', ' ')} {settings[name]}" for name in _SETTINGS if settings.get(name)}
    date = subject.campaign.started[:10]
    return {"build": subject.record.build_version} | words | {"campaign": date}


def labelled(subjects: Iterable[ComparedPlacement], labels: Sequence[str]) -> list[ComparedPlacement]:
    """With the reader's names: "SPEC=TEXT" for a placement, board, model, quantisation, engine or build. Raises
    UserError for one that names nothing here."""
    changed = list(subjects)
    names = ("placement", *BY)
    for label in labels:
        spec, equals, text = label.rpartition("=")
        if not equals or not spec.strip() or not text.strip():
            raise UserError(f"--label {label}: write SPEC=TEXT, for example 'rk-llama.cpp/npu=NPU (rk-llama.cpp)'")
        if not any(spec == subject.spec or spec in map(subject.value, names) for subject in changed):
            known = dict.fromkeys(subject.value(name) for name in names for subject in changed)
            raise UserError(f"--label {label}: there is no {spec}; there are {', '.join(filter(None, known))}")
        changed = [_renamed(subject, spec, text.strip()) for subject in changed]
    return changed


def _renamed(subject: ComparedPlacement, spec: str, text: str) -> ComparedPlacement:
    if subject.spec == spec:
        return replace(subject, placement=subject.placement.replace(spec, text, 1))
    fields = {name: text for name in ("placement", *BY) if subject.value(name) == spec}
    return replace(subject, **fields)  # type: ignore[arg-type] # all of these are texts


def runs_of(subjects: Iterable[ComparedPlacement]) -> list[Run]:
    return [
        run for subject in subjects for run in counted_runs(subject.campaign) if run.placement == subject.record.name
    ]
