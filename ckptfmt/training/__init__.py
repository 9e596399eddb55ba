"""The run's bookkeeping, all pure: what was seen, which checkpoint is best, which ones stay."""

from ckptfmt.training.agreement import agree as agree
from ckptfmt.training.agreement import check as check
from ckptfmt.training.agreement import findings as findings
from ckptfmt.training.metric import Metric as Metric
from ckptfmt.training.plan import Plan as Plan
from ckptfmt.training.plan import Stop as Stop
from ckptfmt.training.progress import Progress as Progress
from ckptfmt.training.record import Due as Due
from ckptfmt.training.record import Parent as Parent
from ckptfmt.training.retention import Keep as Keep
from ckptfmt.training.retention import keep as keep
from ckptfmt.training.retention import survivors as survivors
from ckptfmt.training.sampler import Sampler as Sampler
from ckptfmt.training.segment import Segment as Segment
from ckptfmt.training.selection import Point as Point
from ckptfmt.training.selection import at as at
from ckptfmt.training.selection import best as best
from ckptfmt.training.selection import ranked as ranked
from ckptfmt.training.shape import Description as Description
from ckptfmt.training.shape import describe as describe
from ckptfmt.training.stopping import EarlyStopping as EarlyStopping
from ckptfmt.training.stopping import Verdict as Verdict
from ckptfmt.training.story import story as story
