"""Two processes train one model, save together, are killed, and end with the same bits."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys
import textwrap
from typing import Any

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

    folder, rank, world, port, die_at = sys.argv[1], *map(int, sys.argv[2:])
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
            store, Progress(total=400, virtual_epochs=8), loader=loader, model=model,
            optimizer=optimizer,
        )
        for number, (batch,) in enumerate(epochs):
            if number == die_at:
                os._exit(9)
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


def run(folder: pathlib.Path, world: int, die_at: int = -1) -> list[dict[str, Any]]:
    """Run all ranks; return what each found at the end, or nothing when they died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, folder, str(r), str(world), str(port), str(die_at)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]
    errors = [process.communicate(timeout=250)[1] for process in found]
    if die_at >= 0:
        return []
    assert [process.returncode for process in found] == [0] * world, errors
    return [json.loads(pathlib.Path(f"{folder}.{r}.json").read_text()) for r in range(world)]


def test_a_killed_run_of_two_ends_with_the_same_bits(tmp_path: pathlib.Path) -> None:
    expected = run(tmp_path / "whole", 2)
    run(tmp_path / "killed", 2, die_at=23)
    with ckptfmt.open(tmp_path / "killed") as store:
        between = store.latest().counters["seen"]
        assert sorted(store.latest().tree()["rank_local"]) == [0, 1]
    found = run(tmp_path / "killed", 2)

    assert 100 < between < 400
    assert found == expected
    assert expected[0]["bits"] == expected[1]["bits"]
    assert expected[0]["draw"] != expected[1]["draw"]
    assert expected[0]["findings"] == []


def test_another_number_of_processes_is_reported(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "run", 2, die_at=23)
    (one,) = run(tmp_path / "run", 1)

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
