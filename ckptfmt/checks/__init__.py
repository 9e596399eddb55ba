"""Why would a loaded model behave differently? Coverage, environment, probe, causes."""

from ckptfmt.checks.changes import KnownChange as KnownChange
from ckptfmt.checks.coverage import LoadReport as LoadReport
from ckptfmt.checks.coverage import compare as compare
from ckptfmt.checks.diagnosis import Cause as Cause
from ckptfmt.checks.environment import Finding as Finding
from ckptfmt.checks.environment import requirements as requirements
from ckptfmt.checks.probe import Probe as Probe
from ckptfmt.checks.probe import Replay as Replay
from ckptfmt.checks.subject import Subject as Subject
from ckptfmt.checks.subject import examine as examine
