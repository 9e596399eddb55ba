"""The protocol of spec §8-§10 in a model whose every state is visited (see model.py).

The upper half finds no violation; the lower half breaks one rule at a time and finds one, so
that each rule is known to be needed and the exploration is known to look.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

HERE: Final = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # --import-mode=importlib does not

import model  # noqa: E402

CASES: Final = {**model.SMALL, **model.LARGE}

BASE: Final = "save + delete of its base"
SWEEP: Final = "save + sweep"
BREAK: Final = "save + break-lease"
SHARE: Final = "save + two deletes that share a file"
LONG: Final = "sleeping save, restarted job, fence passes, collect"
SLOW: Final = (  # their mutations are found early
    "delete of the newest, fence passes, collect",
    "slim, delete, fence passes, collect",
    "sleeping save, fence passes, collect",
)
AGED: Final = "pin + sleeping delete, fence passes, break-lease"

# What is broken: the rule, what takes its place, the case that finds it.
MUTATIONS: Final[tuple[tuple[str, Any, str], ...]] = (
    ("create_refuses", False, "two saves"),
    ("number_above_all", False, BASE),
    ("intent", False, BASE),
    ("intent_until_commit", False, BASE),
    ("base_validated", False, BASE),
    ("base_validated_by_revision", False, "slim + save"),
    ("read_back", False, "lost reply"),
    ("leave_after_create", False, "lost reply"),
    ("fence", False, LONG),
    ("tombstone", False, BASE),
    ("tombstone_names_its_checkpoint", False, "save + delete of what it saves"),
    ("free", "im", SHARE),
    ("free", "mi", BASE),
    ("free", "mmi", BASE),
    ("free", "imm", SHARE),
    ("short_lives_seen", False, "save + short life + sweep"),
    ("short_lives_seen", False, "save + short life + delete"),
    ("short_lives_seen", False, "save + slimmed at once + sweep"),
    ("bury_first", False, BASE),
    ("respect_intents", False, BASE),
    ("spent_removed", False, "two saves"),
    ("spent_below", False, LONG),
    ("spent_needs_create_if_absent", False, "no create-if-absent: two saves + delete"),
    ("spent_retention_when_nothing_lives", False, "pin + delete + cleaning up"),
    ("deletion_fence", False, AGED),
    ("sweep", "dim", "save + delete + sweep"),
    ("sweep", "mdi", SWEEP),
    ("sweep", "mdmi", SWEEP),
    ("sweep", "midm", SWEEP),
    ("sweep_stops", False, "save + delete + sweep"),
    ("uploads_before_intents", False, "parts: save + sweep"),
    ("ends_dead_uploads_only", False, "parts: save + cleaning up"),
    ("break_with_tombstone", False, BREAK),
    ("break_needs_create_if_absent", False, "no create-if-absent: save + sweep"),
    ("break_old_retentions_only", False, AGED),
    ("tombstone_fence", False, "two saves + break-lease"),
    ("tombstone_below_newest", False, "delete of the newest, fence passes, collect"),
    ("dead_numbers_stay_dead", False, "slim + delete + pin"),
    ("only_highest_counts", False, "slim + save"),
    ("revision_intent", False, "slim + pin"),
    ("revision_above_all", False, "slim + break-lease"),
    ("break_exact_name", False, "slim + break-lease + pin"),
    ("retention_intent", False, "pin + delete"),
    ("retention_intent_first", False, "pin + delete"),
    ("retention_intent_until_buried", False, "pin + delete"),
    ("revision_looks_at_pins", False, "slim + pin"),
    ("pin_first", False, "pin + delete"),
    ("pin_looks_at_intents", False, "pin + delete"),
    ("pin_looks_at_revisions", False, "slim + pin"),
    ("pin_looks_again", False, "pin + delete"),
)


def slow(*row: Any) -> Any:
    """Leave what takes longest to `make soak`."""
    marks = [pytest.mark.soak] if row[-1] == LONG or row[0] in SLOW else []
    return pytest.param(*row, marks=marks)


def explained(found: model.Found) -> str:
    return "\n".join([found.problem, "after:", *found.schedule])


@pytest.mark.parametrize("name", [slow(name) for name in CASES])
def test_no_state_breaks_the_protocol(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    found = model.explore(CASES[name])

    record_property("states", found.states)
    assert not found.problem, explained(found)


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_no_state_breaks_the_protocol_with_two_deaths(name: str) -> None:
    found = model.explore(CASES[name], deaths=2)

    assert not found.problem, explained(found)


@pytest.mark.parametrize(
    ("rule", "instead", "name"), [slow(*row) for row in MUTATIONS], ids=str
)
def test_each_rule_is_needed(rule: str, instead: Any, name: str) -> None:
    broken = dataclasses.replace(model.PROTOCOL, **{rule: instead})

    assert model.explore(CASES[name], broken).problem


def test_every_rule_has_a_mutation() -> None:
    rules = {field.name for field in dataclasses.fields(model.Rules)}

    of_the_storage = {"create_if_absent", "parts"}
    assert rules - {rule for rule, _, _ in MUTATIONS} == of_the_storage
