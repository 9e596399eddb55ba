"""The run's bookkeeping, all pure: which checkpoint is best, and which ones stay."""

from ckptfmt.training.selection import Point as Point
from ckptfmt.training.selection import at as at
from ckptfmt.training.selection import best as best
