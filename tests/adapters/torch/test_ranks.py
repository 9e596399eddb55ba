"""Two processes train one model, save together, are killed, and end with the same bits."""

from __future__ import annotations

import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import IO, Any

import pytest
import torch

import ckptfmt
from ckptfmt_torch import ranks

SCRIPT = textwrap.dedent(
    """
    import json, os, sys, hashlib, pathlib, random
    import numpy as np, torch, torch.distributed as dist
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    import ckptfmt, ckptfmt_torch
    from ckptfmt.training import Progress

    folder, rank, world, port, total = sys.argv[1], *map(int, sys.argv[2:])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    random.seed(rank), np.random.seed(rank), torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.linspace(0, 1, 404).reshape(101, 4)
    batches = ckptfmt_torch.BatchSampler(101, 8, seed=5, rank=rank, world=world)
    loader = DataLoader(TensorDataset(x), batch_sampler=batches)
    with ckptfmt.open(folder, keep=ckptfmt.keep(last=2)) as store:
        epochs = ckptfmt_torch.VirtualEpochs(
            store, Progress(total=total, virtual_epochs=total // 50), loader=loader,
            model=model, optimizer=optimizer,
        )
        for (batch,) in epochs:
            print("step", flush=True)
            optimizer.zero_grad()
            (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    bits = b"".join(t.detach().numpy().tobytes() for t in model.parameters())
    bits += b"".join(
        s[k].numpy().tobytes() for s in optimizer.state.values() for k in ("exp_avg", "step")
    )
    result = {
        "bits": hashlib.sha256(bits).hexdigest(), "draw": torch.rand(3).tolist(),
        "python": random.random(), "seen": epochs.progress.seen,
        "findings": [f.reason for f in epochs.report.findings] if epochs.report else [],
    }
    pathlib.Path(f"{folder}.{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
    """
)


TOTAL = 400  # examples, eight in a batch, a checkpoint after every fifty
KILLS = 20  # by `make soak`
STEPS = 30  # at most between two kills


def start(folder: pathlib.Path, world: int, total: int = TOTAL) -> list[subprocess.Popen[str]]:
    """Start all ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, str(r), str(world), str(port), str(total)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]


def end(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Wait for the end; return statuses, and what was said on stderr."""
    errors = [rank.communicate(timeout=800)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], errors


def whole(folder: pathlib.Path, world: int, total: int = TOTAL) -> list[dict[str, Any]]:
    """Run all ranks to the end; return what each found there."""
    statuses, errors = end(start(folder, world, total))
    assert statuses == [0] * world, errors
    return [json.loads(pathlib.Path(f"{folder}.{r}.json").read_text()) for r in range(world)]


def kill(ranks: list[subprocess.Popen[str]], steps: int, rng: random.Random) -> None:
    """Kill all ranks some steps from now: one first, as a machine that fails takes one."""
    said: IO[str] = ranks[0].stdout  # type: ignore[assignment]
    assert sum(1 for _ in zip(range(steps), said, strict=False)) == steps
    time.sleep(rng.random() * 0.02)
    for rank in rng.sample(ranks, len(ranks)):
        rank.kill()
        time.sleep(rng.random() * 0.02)
    statuses, errors = end(ranks)
    assert -signal.SIGKILL in statuses, errors


def test_a_killed_run_of_two_ends_with_the_same_bits(
    tmp_path: pathlib.Path, seed: int, soak: bool
) -> None:
    rng = random.Random(seed)
    kills, total = (KILLS, 10 * TOTAL) if soak else (1, TOTAL)
    expected = whole(tmp_path / "whole", 2, total)
    for _ in range(kills):
        kill(start(tmp_path / "killed", 2, total), rng.randrange(10, STEPS), rng)
    with ckptfmt.open(tmp_path / "killed") as store:
        between = store.latest().counters["seen"]
        assert sorted(store.latest().tree()["rank_local"]) == [0, 1]
    found = whole(tmp_path / "killed", 2, total)

    assert 50 <= between < total
    assert found == expected
    assert expected[0]["bits"] == expected[1]["bits"]
    assert expected[0]["draw"] != expected[1]["draw"]
    assert expected[0]["findings"] == []


def test_another_number_of_processes_is_reported(tmp_path: pathlib.Path) -> None:
    kill(start(tmp_path / "run", 2), 23, random.Random(1))
    (one,) = whole(tmp_path / "run", 1)

    assert one["seen"] >= 400
    assert any("1 of 2 processes are restored" in reason for reason in one["findings"])


def test_further_processes_get_generators_of_their_own() -> None:
    state = {"torch": torch.get_rng_state().numpy()}

    seeds = [ranks.seed_of(state, rank) for rank in range(1, 5)]
    assert len(set(seeds)) == 4
    assert seeds == [ranks.seed_of(state, rank) for rank in range(1, 5)]
    ranks.seed_all(seeds[0])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"rng": "a"}, {0: "a"}),
        ({"rank_local": {0: {"rng": "a"}, 1: {"rng": "b"}}}, {0: "a", 1: "b"}),
        ({"rank_local": {0: {"other": 1}}}, {}),
        ({}, {}),
    ],
)
def test_generators_are_found_by_rank(content: dict[str, Any], expected: object) -> None:
    assert ranks.saved_generators(content) == expected
