"""`python -m smc_bridge` is `smc-bridge`."""

import sys

from smc_bridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
