"""
Owns how the figures of a run are shown: tables for people, a file for machines.

Knows nothing of how they came about.
Invariants: what was skipped is named with its reason; every failure is shown with the command that
plays it again.
Source: docs/reliability.md.
"""

from __future__ import annotations

import platform
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from tests.faults.campaign import CLASSES, FaultClass
from tests.faults.oracle import Rule
from tests.faults.probe import Abilities
from tests.faults.tally import Tally

REPLAY = "python -m tests.faults replay"
_FAILURES_SHOWN_MAX = 20


def describe_machine() -> dict[str, str]:
    """Return what figures depend on."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--", "p2pcache"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return {
        "commit": commit + ("+" if changes else ""),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def list_skipped(abilities: Abilities, names: Iterable[str]) -> dict[str, str]:
    """Return fault class → why it cannot be injected here."""
    skipped = {}
    for name in names:
        lacking = [need for need in CLASSES[name].needs if not abilities.has(need)]
        if lacking:
            skipped[name] = "; ".join(f"{need}: {abilities.missing[need]}" for need in lacking)
    return skipped


def write_table(tallies: Mapping[str, Tally]) -> str:
    """Return the Markdown table of what was found, a line for each fault class."""
    rules = [rule.value for rule in Rule]
    lines = [
        f"| fault | cases | {' | '.join(rules)} | slowest start, s |",
        f"| --- | ---: | {' | '.join('---:' for _ in rules)} | ---: |",
    ]
    for name, tally in tallies.items():
        counts = " | ".join(str(tally.findings[rule]) for rule in rules)
        lines.append(
            f"| {CLASSES[name].title} | {tally.cases:,} | {counts} | {tally.recovery_s_max:.2f} |"
        )
    return "\n".join(lines)


def write_coverage(tallies: Mapping[str, Tally]) -> str:
    """Return the Markdown table of operations: their points, and the cases of each class."""
    names = list(tallies)
    operations = {
        name: found for tally in tallies.values() for name, found in tally.operations.items()
    }
    lines = [
        f"| operation | points | places | {' | '.join(names)} |",
        f"| --- | ---: | ---: | {' | '.join('---:' for _ in names)} |",
    ]
    for operation in operations:
        found = [tallies[name].operations[operation] for name in names]
        points, places = max((one.points, len(one.sites)) for one in found)
        cells = [f"{one.cases} at {len(one.hit)}" if one.cases else "0" for one in found]
        lines.append(f"| {operation} | {points} | {places} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_sums(tallies: Mapping[str, Tally]) -> str:
    """Return the one line that counts."""
    total = {rule: sum(t.findings[rule.value] for t in tallies.values()) for rule in Rule}
    cases = sum(tally.cases for tally in tallies.values())
    return (
        f"{cases:,} cases: wrong bytes {total[Rule.WRONG]}, "
        f"acknowledged losses {total[Rule.LOST]}, false have {total[Rule.FALSE]}, "
        f"orphans {total[Rule.ORPHAN]}, other {total[Rule.BEHAVIOUR]}"
    )


def write_failures(tallies: Mapping[str, Tally]) -> str:
    """Return what failed, each with the command that plays it again."""
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    lines = []
    for failure in failures[:_FAILURES_SHOWN_MAX]:
        lines += [f"{REPLAY} {failure['case']}", f"  at {failure['site']}"]
        lines += [f"  {failure['rule']}: {line}" for line in failure["text"].splitlines()[-6:]]
    if len(failures) > _FAILURES_SHOWN_MAX:
        lines.append(f"… and {len(failures) - _FAILURES_SHOWN_MAX} more in the result file")
    return "\n".join(lines)


def to_json(
    tallies: Mapping[str, Tally], skipped: Mapping[str, str], seed: int, seconds: float
) -> dict[str, Any]:
    """Return the result file's content."""
    return {
        **describe_machine(),
        "seed": seed,
        "seconds": round(seconds, 1),
        "skipped": dict(skipped),
        "classes": {name: tally.to_json() for name, tally in tallies.items()},
    }


def choose_classes(names: Iterable[str]) -> list[FaultClass]:
    """Return fault classes by name; all without names."""
    return [CLASSES[name] for name in names] or list(CLASSES.values())
