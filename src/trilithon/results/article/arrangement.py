"""Where each subject stands in the charts: panels, groups of bars in them, and one series per legend entry; and what
its figures are beside those of the baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trilithon.errors import UserError
from trilithon.results.article.subjects import BY, By, ComparedPlacement

__all__ = ["Arrangement", "arrange"]

_PANELS = ("board", "model", "quantization")


@dataclass(frozen=True, slots=True)
class Arrangement:
    """`panel`, `group` and `series` give a subject's place; `baseline` the subject that it is compared with. `along`
    are what each group has one of: they are part of its name, and make no panels."""

    subjects: tuple[ComparedPlacement, ...]
    by: By
    varying: tuple[str, ...]
    along: tuple[str, ...]
    baseline_name: str

    def panel(self, subject: ComparedPlacement) -> str:
        names = (name for name in self.varying if name not in (self.by, *self.along))
        return ", ".join(filter(None, map(subject.value, names)))

    def group(self, subject: ComparedPlacement) -> str:
        return " ".join(filter(None, map(subject.value, (self.by, *self.along))))

    def series(self, subject: ComparedPlacement) -> str:
        return subject.placement

    @property
    def panels(self) -> list[str]:
        return list(dict.fromkeys(map(self.panel, self.subjects)))

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(map(self.group, self.subjects)))

    @property
    def legend(self) -> list[str]:
        return list(dict.fromkeys(map(self.series, self.subjects)))

    def baseline(self, subject: ComparedPlacement) -> ComparedPlacement | None:
        """Of the same panel and group, the placement that --baseline names; or of the same panel and series, the one in
        the group that it names. None for the baseline itself."""
        in_panel = [other for other in self.subjects if self.panel(other) == self.panel(subject)]
        if self.baseline_name in self.groups:
            alike = [one for one in in_panel if self.series(one) == self.series(subject)]
            chosen = [one for one in alike if self.group(one) == self.baseline_name]
        else:
            chosen = [one for one in in_panel if _is_named(one, self.baseline_name)]
            if self.by in _PANELS:
                chosen = [one for one in chosen if self.group(one) == self.group(subject)]
        return next((one for one in chosen if one is not subject), None) if subject not in chosen else None


def _is_named(subject: ComparedPlacement, name: str) -> bool:
    return name in (subject.placement, subject.spec)


def arrange(subjects: Sequence[ComparedPlacement], by: By | None, baseline: str | None) -> Arrangement:
    """Without `by`, groups are what differs most plainly; where nothing does, there is one. Raises UserError for a
    baseline that is not there."""
    varying = tuple(name for name in _PANELS if len({subject.value(name) for subject in subjects}) > 1)
    plainest: Iterator[By] = (name for name in BY if name in varying)
    chosen: By = next(plainest, "board") if by is None else by
    along = [
        name
        for name in varying
        if name != chosen and chosen in varying and len(_pairs(subjects, chosen, name)) == len(_pairs(subjects, chosen))
    ]
    plain = Arrangement(tuple(subjects), chosen, varying, tuple(along), "")
    if baseline is None:
        baseline = next((one.placement for one in subjects if one.unit == "cpu"), subjects[0].placement)
    elif baseline not in plain.groups and not any(_is_named(subject, baseline) for subject in subjects):
        known = dict.fromkeys([*plain.legend, *plain.groups])
        raise UserError(f"--baseline {baseline}: there is no such placement or group; there are {', '.join(known)}")
    return replace(plain, baseline_name=baseline)


def _pairs(subjects: Sequence[ComparedPlacement], *names: str) -> set[tuple[str, ...]]:
    return {tuple(subject.value(name) for name in names) for subject in subjects}
