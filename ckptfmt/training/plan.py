"""A run as steps of one batch size: for people, and for frameworks that count steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckptfmt.training.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The step after which one or more virtual epochs are complete."""

    virtual_epoch: int  # k
    completed: int  # how many this step completes; more than 1 if the batch is that large
    edge: int  # examples at which k ends
    step: int  # from 1, counted from where the plan begins
    seen: int  # examples after that step, >= edge


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is left of a run with batches of one size."""

    batch_size: int  # examples a step, over all workers
    seen: int  # examples before the first step
    total: int  # examples at which the run stops
    virtual_epochs: int  # n
    steps: int  # to the stop
    last_batch: int  # examples that the last step needs to hit the total; 0 without steps
    overshoot: int  # examples beyond the total if the last batch is whole
    naive_steps: int  # a virtual epoch, by total // (batch_size * n)
    naive_shown: int  # examples that formula shows; 0: a framework would never end an epoch
    naive_lost: int  # examples it loses
    grid: Grid

    def fit_arguments(self) -> dict[str, int]:
        """Return epochs, steps_per_epoch and initial_epoch, for frameworks that count these.

        The epochs that are left share the steps that are left, rounded up, so that the stop
        point is within them; where an epoch ends and when to stop is for the counter to say.
        """
        done = min(self.grid.reached(self.seen), self.virtual_epochs - 1)
        left = self.virtual_epochs - done
        return {
            "epochs": self.virtual_epochs,
            "initial_epoch": done,
            "steps_per_epoch": max(1, -(-self.steps // left)),
        }

    def stops(self) -> Iterator[Stop]:
        """Yield the steps after which a checkpoint falls due."""
        k = self.grid.reached(self.seen)
        while k < self.virtual_epochs:
            step = -((self.seen - self.grid.edge(k + 1)) // self.batch_size)
            seen = self.seen + step * self.batch_size
            reached = self.grid.reached(seen)
            yield Stop(
                virtual_epoch=reached,
                completed=reached - k,
                edge=self.grid.edge(reached),
                step=step,
                seen=seen,
            )
            k = reached


def plan(grid: Grid, seen: int, batch_size: int) -> Plan:
    """Return what is left of a run that has seen so many examples."""
    left = max(0, grid.total - seen)
    steps = -(-left // batch_size)
    naive_steps = grid.total // (batch_size * grid.n)
    shown = naive_steps * batch_size * grid.n
    return Plan(
        batch_size=batch_size,
        seen=seen,
        total=grid.total,
        virtual_epochs=grid.n,
        steps=steps,
        last_batch=left - (steps - 1) * batch_size if steps else 0,
        overshoot=steps * batch_size - left,
        naive_steps=naive_steps,
        naive_shown=shown,
        naive_lost=grid.total - shown,
        grid=grid,
    )
