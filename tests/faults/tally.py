"""
Owns counting what came of the cases of one fault class, and putting counts together.

Knows nothing of how cases are run or shown.
Invariants: a case whose fault was not reached counts as none; every failure keeps what is needed
to play it again.
Source: none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.faults.case import Case, Verdict
from tests.faults.oracle import Rule
from tests.faults.seam import Action, Plan

# Failures that are told in full; the rest is counted.
FAILURES_KEPT_MAX = 50
_TEXT_CHARS_MAX = 3000


@dataclass(slots=True)
class OperationTally:
    """How an operation was covered: points that it has, places in the code, cases."""

    points: int = 0
    sites: set[str] = field(default_factory=set)
    hit: set[str] = field(default_factory=set)
    cases: int = 0


@dataclass(slots=True)
class Tally:
    """The counts of one fault class."""

    cases: int = 0
    not_reached: int = 0
    seconds: float = 0.0
    recovery_s_max: float = 0.0
    findings: Counter[str] = field(default_factory=Counter)
    operations: dict[str, OperationTally] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def is_clean(self) -> bool:
        """Return whether nothing was found."""
        return not self.findings

    def note_points(self, operation: str, sites: list[str]) -> None:
        """Note what an operation has."""
        found = self.operations.setdefault(operation, OperationTally())
        found.points, found.sites = len(sites), set(sites)

    def add(self, class_name: str, verdict: Verdict) -> None:
        """Count one case."""
        self.seconds += verdict.seconds
        if not verdict.was_reached and not verdict.findings:
            self.not_reached += 1
            return
        self.cases += 1
        self.recovery_s_max = max(self.recovery_s_max, verdict.recovery_s)
        operation = self.operations.setdefault(verdict.case.operation, OperationTally())
        operation.cases += 1
        operation.hit.add(verdict.site)
        self.outcomes[verdict.outcome] += 1
        for rule in {finding.rule for finding in verdict.findings}:
            self.findings[rule.value] += 1
        for finding in verdict.findings:
            if len(self.failures) < FAILURES_KEPT_MAX:
                self.failures.append(
                    {
                        "case": write_case(class_name, verdict.case),
                        "site": verdict.site,
                        "rule": finding.rule.value,
                        "text": finding.text[-_TEXT_CHARS_MAX:],
                    }
                )

    def merge(self, other: Tally) -> None:
        """Add the counts of another part of the same class."""
        self.cases += other.cases
        self.not_reached += other.not_reached
        self.seconds += other.seconds
        self.recovery_s_max = max(self.recovery_s_max, other.recovery_s_max)
        self.findings += other.findings
        self.outcomes += other.outcomes
        self.failures = (self.failures + other.failures)[:FAILURES_KEPT_MAX]
        for name, found in other.operations.items():
            ours = self.operations.setdefault(name, OperationTally())
            ours.points = max(ours.points, found.points)
            ours.sites |= found.sites
            ours.hit |= found.hit
            ours.cases += found.cases

    def to_json(self) -> dict[str, Any]:
        """Return what from_json() reads."""
        return {
            "cases": self.cases,
            "not_reached": self.not_reached,
            "seconds": round(self.seconds, 1),
            "recovery_s_max": round(self.recovery_s_max, 3),
            "findings": {rule.value: self.findings[rule.value] for rule in Rule},
            "outcomes": dict(self.outcomes),
            "operations": {
                name: {
                    "points": found.points,
                    "cases": found.cases,
                    "sites": sorted(found.sites),
                    "hit": sorted(found.hit),
                }
                for name, found in self.operations.items()
            },
            "failures": self.failures,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Tally:
        """Read what to_json() wrote."""
        operations = {
            name: OperationTally(raw["points"], set(raw["sites"]), set(raw["hit"]), raw["cases"])
            for name, raw in fields["operations"].items()
        }
        findings = Counter({rule: n for rule, n in fields["findings"].items() if n})
        return cls(
            fields["cases"],
            fields["not_reached"],
            fields["seconds"],
            fields["recovery_s_max"],
            findings,
            operations,
            fields["failures"],
            Counter(fields["outcomes"]),
        )


def write_case(class_name: str, case: Case) -> str:
    """Return a case as one word: `kills/pull/torn/17/0/5`."""
    plan = case.plan
    parts = [class_name, case.operation, plan.action.value, plan.at, plan.number, case.seed]
    return "/".join(str(part) for part in [*parts, *([case.mutation] if case.mutation else [])])


def read_case(text: str, scopes: dict[str, Any]) -> tuple[str, Case]:
    """
    Read what write_case() wrote.

    Args:
        text: The word.
        scopes: Fault class → the calls that count as its points.
    """
    class_name, operation, action, at, number, seed, *mutation = text.split("/")
    plan = Plan(Action(action), int(at), int(number), scopes[class_name])
    return class_name, Case(operation, plan, int(seed), "".join(mutation))
