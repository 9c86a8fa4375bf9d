"""`python -m alphadecay analyze WHAT`; see `alphadecay.command`."""

import sys

from alphadecay.command.analyze import main

if __name__ == "__main__":
    sys.exit(main())
