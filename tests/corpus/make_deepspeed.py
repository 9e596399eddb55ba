"""How `made/zero2` and `made/zero3` were made, with DeepSpeed 0.19.8 and torch 2.13.0.

    python make_deepspeed.py RANK RANKS STAGE FOLDER PORT     zero2: 2 ranks, zero3: 3

and then, for the universal folders,

    python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state \
        --input_folder FOLDER/global_step3 --output_folder FOLDER/global_step3_universal

The scripts that DeepSpeed puts beside the folders are left out. Nothing is compiled for it.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """Train three steps in bfloat16 and save."""
    rank, world, stage, folder, port = sys.argv[1:]
    os.environ |= {
        "DS_ACCELERATOR": "cpu", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world,
        "LOCAL_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    import deepspeed
    import torch

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = _net(torch)
    first = [*net.a.parameters(), *net.norm.parameters()]
    groups = [{"params": first, "lr": 0.01}, {"params": [net.b.weight, net.scalar], "lr": 0.02}]
    deepspeed.init_distributed("gloo")
    engine, *_ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.Adam(groups),
        config={
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {
                "stage": int(stage),
                "sub_group_size": 10,
                "stage3_param_persistence_threshold": 0,
                "stage3_gather_16bit_weights_on_model_save": False,
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": True},
        },
    )
    for step in range(3):
        torch.manual_seed(100 * int(rank) + step)
        loss = engine(torch.randn(4, 7).bfloat16()).float().pow(2).mean()
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(folder, client_state={"epoch": 3})
    torch.distributed.barrier()


def _net(torch: Any) -> Any:
    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(7, 5)
            self.norm = torch.nn.LayerNorm(5)
            self.register_buffer("seen", torch.arange(6.0))
            self.frozen = torch.nn.Linear(5, 3)
            self.frozen.requires_grad_(False)
            self.b = torch.nn.Linear(3, 11, bias=False)
            self.scalar = torch.nn.Parameter(torch.tensor([1.5]))

        def forward(self, x: Any) -> Any:
            return self.b(self.frozen(self.norm(self.a(x)))) * self.scalar

    return Net()


if __name__ == "__main__":
    main()
