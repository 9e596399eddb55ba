"""The run's bookkeeping, all pure: which checkpoint is best, and which ones stay."""

from ckptfmt.training.retention import Keep as Keep
from ckptfmt.training.retention import keep as keep
from ckptfmt.training.retention import survivors as survivors
from ckptfmt.training.selection import Point as Point
from ckptfmt.training.selection import at as at
from ckptfmt.training.selection import best as best
