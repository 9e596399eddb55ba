"""Compare what a checkpoint holds with what a target expects, before a byte is read.

Pure: two tables of (dtype name, shape) in, one `LoadReport` out. Both directions count: an
array that nobody asked for is as suspicious as one that is absent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ckptfmt.checks.environment import Finding
from ckptfmt.checks.probe import Replay
from ckptfmt.errors import MismatchError

MAX_LISTED: Final = 12  # problems in a printed table or a message; the others are counted

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What agrees and what does not between a checkpoint and a target.

    Of every pair the checkpoint's side comes first, the target's second. All tuples are
    sorted by path. A path whose shape and dtype both differ is listed under both.
    """

    matched: tuple[str, ...]  # same path, shape and dtype on both sides
    missing_keys: tuple[str, ...]  # expected by the target, absent from the checkpoint
    unexpected_keys: tuple[str, ...]  # in the checkpoint, without a place in the target
    shape_mismatches: tuple[tuple[str, Shape, Shape], ...]  # (path, stored, target)
    dtype_mismatches: tuple[tuple[str, str, str], ...]  # (path, stored, target)
    findings: tuple[Finding, ...] = ()  # what else differs, and what was not used
    replay: Replay | None = None  # of the stored probe; None: there is none, or it was not run

    @property
    def ok(self) -> bool:
        """Whether every stored array has its place and every place has its array."""
        return not self.problems

    @property
    def problems(self) -> int:
        """Number of disagreements over all four kinds."""
        return (
            len(self.missing_keys)
            + len(self.unexpected_keys)
            + len(self.shape_mismatches)
            + len(self.dtype_mismatches)
        )

    def raise_for_mismatch(self, *, checkpoint: str | None = None) -> None:
        """Raise if anything disagrees; the message lists the first `MAX_LISTED` problems.

        Args:
            checkpoint: Name of the checkpoint for the message, such as `0000000012`.

        Raises:
            MismatchError: `ok` is false. `where` holds `path` when there is one problem,
                `problems` (their number) when there are several.
        """
        if self.ok:
            return
        rows = list(self._rows())
        where: dict[str, object] = {} if checkpoint is None else {"checkpoint": checkpoint}
        if len(rows) == 1:
            _, path, text = rows[0]
            raise MismatchError(f"array {text}", path=path, **where)
        lines = [f"{path!r} {text}" for _, path, text in rows[:MAX_LISTED]]
        lines += _rest(len(rows))
        raise MismatchError(
            "checkpoint and target disagree: " + "; ".join(lines), problems=len(rows), **where
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain, complete data for `--json`: every path, nothing cut short."""
        return {
            "ok": self.ok,
            "matched": list(self.matched),
            "missing_keys": list(self.missing_keys),
            "unexpected_keys": list(self.unexpected_keys),
            "shape_mismatches": [
                {"path": path, "stored": list(stored), "target": list(target)}
                for path, stored, target in self.shape_mismatches
            ],
            "dtype_mismatches": [
                {"path": path, "stored": stored, "target": target}
                for path, stored, target in self.dtype_mismatches
            ],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "replay": None if self.replay is None else self.replay.to_dict(),
        }

    def __str__(self) -> str:
        """Return a short table: one line of counts, then at most `MAX_LISTED` problems."""
        counts = (
            f"{len(self.matched)} matched, {len(self.missing_keys)} missing, "
            f"{len(self.unexpected_keys)} unexpected, {len(self.shape_mismatches)} with "
            f"another shape, {len(self.dtype_mismatches)} with another dtype"
        )
        rows = list(self._rows())
        shown = [(kind, _printable(path), text) for kind, path, text in rows[:MAX_LISTED]]
        width = max((len(path) for _, path, _ in shown), default=0)
        lines = [f"  {kind:<10}  {path:<{width}}  {text}" for kind, path, text in shown]
        more = [f"  {line}" for line in _rest(len(rows))]
        notes = [f"  {f.severity:<10}  {_printable(f.name)}: {f.reason}" for f in self.findings]
        replay = [] if self.replay is None else [f"  predictions {self.replay}"]
        return "\n".join([counts, *lines, *more, *notes, *replay])

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield (kind, path, what is wrong), the kinds that lose data first."""
        for path in self.missing_keys:
            yield "missing", path, "is expected by the target, absent from the checkpoint"
        for path in self.unexpected_keys:
            yield "unexpected", path, "is in the checkpoint, without a place in the target"
        for path, shape, wanted in self.shape_mismatches:
            yield "shape", path, f"has shape {shape} in the checkpoint, {wanted} in the target"
        for path, dtype, other in self.dtype_mismatches:
            yield "dtype", path, f"has dtype {dtype} in the checkpoint, {other} in the target"


def compare(
    stored: Mapping[str, tuple[str, Sequence[int]]],
    target: Mapping[str, tuple[str, Sequence[int]]],
    *,
    findings: Iterable[Finding] = (),
) -> LoadReport:
    """Compare the arrays of a checkpoint with those of a target.

    Args:
        stored: Path to (dtype name, shape), from the manifest.
        target: The same for the tree that will be filled.
        findings: What the caller found out besides.
    """
    matched: list[str] = []
    shapes: list[tuple[str, Shape, Shape]] = []
    dtypes: list[tuple[str, str, str]] = []
    for path in sorted(stored.keys() & target.keys()):
        (dtype, extent), (wanted, expected) = stored[path], target[path]
        have, want = tuple(map(int, extent)), tuple(map(int, expected))
        if have != want:
            shapes.append((path, have, want))
        if dtype != wanted:
            dtypes.append((path, dtype, wanted))
        if have == want and dtype == wanted:
            matched.append(path)
    return LoadReport(
        matched=tuple(matched),
        missing_keys=tuple(sorted(target.keys() - stored.keys())),
        unexpected_keys=tuple(sorted(stored.keys() - target.keys())),
        shape_mismatches=tuple(shapes),
        dtype_mismatches=tuple(dtypes),
        findings=tuple(findings),
    )


def _rest(count: int) -> list[str]:
    return [f"... and {count - MAX_LISTED} more"] if count > MAX_LISTED else []


def _printable(path: str) -> str:
    # A path is foreign data: a newline or an escape sequence must not reach the terminal.
    return path if path.isprintable() else repr(path)
