"""`python -m ckptfmt` is `ckptfmt`."""

import sys

from ckptfmt.cli import main

if __name__ == "__main__":
    sys.exit(main())
