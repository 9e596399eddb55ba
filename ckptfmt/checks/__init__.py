"""Why would a loaded model behave differently? Coverage, environment, known changes."""

from ckptfmt.checks.coverage import LoadReport as LoadReport
