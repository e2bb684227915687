"""`python -m tellapart` is the command `tellapart`."""

from __future__ import annotations

import sys

from tellapart.cli import main

if __name__ == "__main__":
    sys.exit(main())
