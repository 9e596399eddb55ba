"""The command line: one command per file, tables for people, `--json` for programs.

A command parses its arguments, asks the public API and shows the answer; `program` finds the
command and turns errors into exit statuses. See docs/cli.md.
"""

from ckptfmt.cli.program import main as main
