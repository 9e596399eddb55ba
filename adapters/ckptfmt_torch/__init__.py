"""Checkpoints of PyTorch training runs: the whole run, by name, exactly.

state = ckptfmt_torch.capture(model=model, optimizer=optimizer, scheduler=scheduler)
store.save(state, counters={"seen": seen})
report = ckptfmt_torch.restore(store.latest(), model=model, optimizer=optimizer, ...)
"""

from ckptfmt_torch.capturing import capture as capture
from ckptfmt_torch.data import BatchSampler as BatchSampler
from ckptfmt_torch.determinism import Determinism as Determinism
from ckptfmt_torch.determinism import deterministic as deterministic
from ckptfmt_torch.looping import VirtualEpochs as VirtualEpochs
from ckptfmt_torch.probing import probe as probe
from ckptfmt_torch.proving import Inputs as Inputs
from ckptfmt_torch.proving import diagnose as diagnose
from ckptfmt_torch.proving import subject as subject
from ckptfmt_torch.ranks import Ranks as Ranks
from ckptfmt_torch.restoring import restore as restore
from ckptfmt_torch.running import resume as resume
from ckptfmt_torch.running import save as save
