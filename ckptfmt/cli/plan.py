"""`ckptfmt plan`: a run in steps of one batch size, before it begins. Opens no store."""

from __future__ import annotations

import argparse
import itertools
from typing import Final

from ckptfmt.cli import exits
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column, Styled
from ckptfmt.errors import UsageError
from ckptfmt.training import Plan, Progress

MAX_ROWS: Final = 50  # checkpoints shown, unless --all
MAX_ROWS_ASKED_FOR: Final = 1_000_000  # with --all and in a JSON document


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    what = parser.add_argument_group("how much", "either --total, or --dataset and --stop")
    what.add_argument("--total", type=int, metavar="N", help="examples at which the run stops")
    what.add_argument("--dataset", type=int, metavar="N", help="examples in the data set")
    what.add_argument("--stop", metavar="X", help="passes over it, such as 14.3")
    parser.add_argument(
        "--checkpoints", type=int, required=True, metavar="N", help="virtual epochs"
    )
    parser.add_argument(
        "--batch", type=int, required=True, metavar="N", help="examples a step, all workers"
    )
    parser.add_argument(
        "--seen",
        type=int,
        default=0,
        metavar="N",
        help="plan the rest of a run that saw so many",
    )
    parser.add_argument("-a", "--all", action="store_true", help="show every checkpoint")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Show the plan."""
    whole = args.dataset is not None and args.stop is not None
    if (args.total is None) is not whole or (args.total is not None and args.stop is not None):
        raise UsageError("give either --total, or --dataset and --stop")
    progress = Progress(
        virtual_epochs=args.checkpoints,
        total=args.total,
        dataset_size=args.dataset,
        stop_point=args.stop,
        seen=args.seen,
    )
    plan = progress.plan(args.batch)
    if (args.json or args.all) and plan.virtual_epochs > MAX_ROWS_ASKED_FOR:
        raise UsageError(
            "too many checkpoints to list",
            checkpoints=plan.virtual_epochs,
            largest=MAX_ROWS_ASKED_FOR,
        )
    if args.json:
        screen.json(_document(plan))
    else:
        _draw(screen, plan, None if args.all else MAX_ROWS)
    return exits.OK


def _document(plan: Plan) -> dict[str, object]:
    return {
        "total": plan.total,
        "seen": plan.seen,
        "virtual_epochs": plan.virtual_epochs,
        "batch": plan.batch_size,
        "steps": plan.steps,
        "last_batch": plan.last_batch,
        "overshoot": plan.overshoot,
        "naive": {
            "steps_per_epoch": plan.naive_steps,
            "shown": plan.naive_shown,
            "lost": plan.naive_lost,
        },
        "checkpoints": [
            {
                "virtual_epoch": stop.virtual_epoch,
                "completed": stop.completed,
                "edge": stop.edge,
                "step": stop.step,
                "seen": stop.seen,
            }
            for stop in plan.stops()
        ],
    }


def _draw(screen: Screen, plan: Plan, limit: int | None) -> None:
    epochs = plan.virtual_epochs
    screen.line(
        f"{plan.total:,} examples in {epochs:,} virtual epochs, batches of {plan.batch_size:,}"
        + (f", after {plan.seen:,} seen" if plan.seen else "")
    )
    screen.line()
    stops = list(itertools.islice(plan.stops(), None if limit is None else limit + 1))
    shown = stops[:limit]
    columns = [
        Column(title="checkpoint", right=True),
        Column(title="due at", right=True),
        Column(title="after step", right=True),
        Column(title="seen then", right=True),
        Column(title="late by", right=True, optional=True),
    ]
    rows: list[list[Cell]] = []
    for stop in shown:
        first = stop.virtual_epoch - stop.completed + 1
        name = f"{first}-{stop.virtual_epoch}" if stop.completed > 1 else str(first)
        late = stop.seen - stop.edge
        rows.append([name, f"{stop.edge:,}", f"{stop.step:,}", f"{stop.seen:,}", f"{late:,}"])
    screen.table(columns, rows)
    if len(stops) > len(shown):
        screen.line("more checkpoints follow (see --all)", "dim")
    screen.line()
    last = "whole" if not plan.overshoot else f"cut to {plan.last_batch:,} to hit the total"
    screen.fields(
        [
            ("steps", f"{plan.steps:,}, the last batch {last}" if plan.steps else "0"),
            ("shown", f"{plan.total:,}, lost: 0" + _whole(plan)),
            ("total // (batch * n)", _naive(plan)),
        ]
    )


def _whole(plan: Plan) -> str:
    over = plan.overshoot
    return f" (with a whole last batch {plan.total + over:,})" if over else ""


def _naive(plan: Plan) -> Cell:
    if not plan.naive_steps:
        return Styled("0 steps an epoch: it would never end", "bad")
    shown = f"{plan.naive_shown:,} in {plan.virtual_epochs:,} times {plan.naive_steps:,} steps"
    return Styled(f"{shown}, lost: {plan.naive_lost:,}", "warn" if plan.naive_lost else "")
