"""`python -m stepagent`: the command `stepagent`."""

import sys

from stepagent.cli import main

if __name__ == "__main__":
    sys.exit(main())
