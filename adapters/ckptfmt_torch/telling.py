"""What a restore cannot put back, as findings of its report."""

from __future__ import annotations

from ckptfmt.checks import Finding


def other_scaler(path: str, *, was: bool) -> Finding:
    """Say that a scaler was switched on or off."""
    return Finding(
        severity="warning",
        name=f"{path}/enabled",
        saved=was,
        now=not was,
        reason="a scaler that is not enabled has no state: this one stays as it is",
    )


def positionless(path: str) -> Finding:
    """Say that a loader has no position."""
    return Finding(
        severity="warning",
        name=path,
        saved=None,
        now=None,
        reason="it cannot say which example comes next: the pass begins anew, and examples of"
        " the interrupted one are shown again",
    )


def other_world(saved: int, now: int) -> Finding:
    """Say that another number of processes trains."""
    return Finding(
        severity="warning",
        name="rank_local",
        saved=saved,
        now=now,
        reason=f"the generators of {min(saved, now)} of {saved} processes are restored; those"
        " of further processes are derived from what rank 0 had",
    )
