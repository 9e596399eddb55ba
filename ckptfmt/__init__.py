"""Checkpoints that are complete and verified, or an error that says what is wrong.

store = ckptfmt.open("runs/a")
store.save({"model": {"w": w}}, counters={"seen": 1000}, metrics={"val_loss": 0.3})
state = store.latest().load()
"""

from ckptfmt._store.bundle import export as export
from ckptfmt._store.bundle import pack as pack
from ckptfmt._store.checkpoint import Checkpoint as Checkpoint
from ckptfmt._store.pending import PendingSave as PendingSave
from ckptfmt._store.store import Store as Store
from ckptfmt.api import load as load
from ckptfmt.api import open as open
from ckptfmt.api import open_checkpoint as open_checkpoint
from ckptfmt.api import save as save
from ckptfmt.api import unpack as unpack
from ckptfmt.copying import copy as copy
from ckptfmt.leaves import Shard as Shard
from ckptfmt.training.retention import keep as keep

__version__ = "0.1.0"
