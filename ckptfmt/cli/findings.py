"""Differences between two environments, as `env` and `diff` show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ckptfmt.checks.environment import Finding
from ckptfmt.cli import text
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column, Styled

_STYLES: Final = {"error": "bad", "warning": "warn", "info": "dim"}


def documents(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """Return findings for JSON."""
    return [
        {
            "severity": finding.severity,
            "name": finding.name,
            "saved": finding.saved,
            "now": finding.now,
            "reason": finding.reason,
        }
        for finding in findings
    ]


def serious(findings: Sequence[Finding]) -> bool:
    """Tell whether results may differ by more than rounding."""
    return any(finding.severity != "info" for finding in findings)


def draw(screen: Screen, findings: Sequence[Finding], *, sides: tuple[str, str]) -> None:
    """Write a table of findings, the most serious first."""
    screen.table(
        [
            Column(title="severity"),
            Column(title="what", folds=True),
            Column(title=sides[0], folds=True),
            Column(title=sides[1], folds=True),
            Column(title="why it matters", folds=True),
        ],
        [_cells(finding) for finding in findings],
    )


def _cells(finding: Finding) -> list[Cell]:
    return [
        Styled(finding.severity, _STYLES[finding.severity]),
        finding.name,
        _side(finding.saved),
        _side(finding.now),
        finding.reason,
    ]


def _side(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_side(item)}" for name, item in value.items())
    if isinstance(value, list):
        return text.several(value)
    return "-" if value is None else text.cut(str(value), 200)
