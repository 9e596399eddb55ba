"""Checkpoints of Keras models and their training, on any of its backends, exactly.

checkpoint = ckptfmt_keras.Checkpoint("runs/a", monitor="val_loss", save_best_only=True)
ckptfmt_keras.fit_virtual(model, (x, y), progress, checkpoint=checkpoint, batch_size=64)
model = ckptfmt_keras.load_model("runs/a@best:val_loss")
"""

from ckptfmt_keras.capturing import capture as capture
from ckptfmt_keras.checkpointing import Checkpoint as Checkpoint
from ckptfmt_keras.determinism import Determinism as Determinism
from ckptfmt_keras.determinism import deterministic as deterministic
from ckptfmt_keras.fitting import fit_virtual as fit_virtual
from ckptfmt_keras.migrated import load_migrated as load_migrated
from ckptfmt_keras.models import load_model as load_model
from ckptfmt_keras.models import save_model as save_model
from ckptfmt_keras.probing import probe as probe
from ckptfmt_keras.proving import Inputs as Inputs
from ckptfmt_keras.proving import diagnose as diagnose
from ckptfmt_keras.proving import subject as subject
from ckptfmt_keras.restoring import restore as restore
from ckptfmt_keras.resuming import Resume as Resume
from ckptfmt_keras.resuming import resume as resume
from ckptfmt_keras.tuning import load_weights as load_weights
