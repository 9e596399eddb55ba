"""Why would a loaded model behave differently? Coverage, environment, known changes."""

from ckptfmt.checks.changes import KnownChange as KnownChange
from ckptfmt.checks.coverage import LoadReport as LoadReport
from ckptfmt.checks.coverage import compare as compare
from ckptfmt.checks.environment import Finding as Finding
