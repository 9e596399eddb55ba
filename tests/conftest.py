"""What every test shares: the seed, hypothesis profiles, and the list of what did not run.

Three environment variables, all set by the Makefile and none of them needed:
CKPTFMT_SOAK=1 asks for full counts, CKPTFMT_SEED=N seeds them (printed at the top of each
run), CKPTFMT_NOT_RUN=FILE appends the list of tests that were skipped or deselected to FILE.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
from typing import Any

import hypothesis
import pytest

SOAK = os.environ.get("CKPTFMT_SOAK", "") not in ("", "0")
SEED = int(os.environ.get("CKPTFMT_SEED", "0"))
INSTEAD = {  # marker that keeps a test out of `make test` → what runs it
    "slow": "make soak",
    "soak": "make soak",
    "server": "make test-servers",
    "gpu": "pytest -m gpu, on a machine with an accelerator",
    "wheel": "make test",
}
# Where several processes share the tests, one of them has all tests of such a file, which share
# what is dear to make, and all those of one server.
TOGETHER = (
    "tests/test_examples.py", "tests/test_packaging.py", "tests/bench/", "tests/remote/",
    "tests/adapters/keras/test_kill.py",
)  # fmt: skip
SERVER = re.compile("moto|gcs|webdav|azurite|ceph|swift|sshd|nginx")
DESELECTED: pytest.StashKey[collections.Counter[str]] = pytest.StashKey()

# Timing on a shared machine says nothing about correctness: no deadlines. `make test` tries
# the same examples every time, so that a red run is red for everybody; `make soak` explores.
hypothesis.settings.register_profile(
    "test", deadline=None, max_examples=50, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile(
    "soak", deadline=None, max_examples=1000, stateful_step_count=80, print_blob=True
)
hypothesis.settings.load_profile("soak" if SOAK else "test")


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed that a test with randomness of its own starts from."""
    return SEED


@pytest.fixture(scope="session")
def soak() -> bool:
    """Return whether full counts were asked for."""
    return SOAK


def pytest_report_header() -> list[str]:
    counts = "full counts" if SOAK else "reduced counts; `make soak` runs the full ones"
    return [f"seed: {SEED} (set CKPTFMT_SEED to repeat), {counts}"]


def together(nodeid: str) -> str:
    """Return the name of the group of tests that run in one process; mostly of one test."""
    if nodeid.startswith("tests/servers/"):
        return "+".join(sorted(set(SERVER.findall(nodeid)))) or "tests/servers/"
    return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what hands out groups of tests; marks for it do not work with pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    return ByGroup(config, log)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        counter = item.config.stash.setdefault(DESELECTED, collections.Counter())
        counter[_marker(item)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With xdist: let a worker tell the process that reports what was deselected in it."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["deselected"] = dict(config.stash.get(DESELECTED, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it from any one of the workers: each has collected, and deselected, everything."""
    found = getattr(node, "workeroutput", {}).get("deselected", {})
    node.config.stash[DESELECTED] = collections.Counter(found)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = [
        f"{count:5}  skipped     {where}: {reason}"
        for (where, reason), count in _skipped(terminalreporter).items()
    ]
    for marker, count in sorted(config.stash.get(DESELECTED, collections.Counter()).items()):
        way = INSTEAD.get(marker, "not selected by this command")
        rows.append(f"{count:5}  deselected  {marker}: {way}")
    if target := os.environ.get("CKPTFMT_NOT_RUN"):
        path = pathlib.Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in rows)


def _marker(item: pytest.Item) -> str:
    return next((name for name in INSTEAD if item.get_closest_marker(name)), "other")


def _skipped(
    reporter: pytest.TerminalReporter,
) -> collections.Counter[tuple[str, str]]:
    """Count skipped tests by file and reason."""
    counter: collections.Counter[tuple[str, str]] = collections.Counter()
    for report in reporter.stats.get("skipped", []):
        match report.longrepr:
            case (_, _, str(reason)):
                counter[report.nodeid.partition("::")[0], reason.removeprefix("Skipped: ")] += 1
            case _:  # an expected failure
                counter[report.nodeid.partition("::")[0], str(report.longrepr)] += 1
    return counter
