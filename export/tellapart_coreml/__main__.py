"""`python -m tellapart_coreml`."""

import sys

from tellapart_coreml.prove import main

if __name__ == "__main__":
    sys.exit(main())
