"""torch.save without the CRC-32 of its zip members: its fastest way, and it loses the check."""

from __future__ import annotations

import pathlib

import torch

from tests.bench.contenders import torch_save
from tests.bench.contenders.torch_save import prepare as prepare
from tests.bench.contract import Saver

NAME = "torch.save, CRC off"
READS = "torch_save"
DISTRIBUTIONS = ("torch",)


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    torch.serialization.set_crc32_options(False)
    return torch_save.saver(folder, durable=durable)
