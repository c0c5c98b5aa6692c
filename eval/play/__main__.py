"""`stepagent play`; see the package."""

import sys

from stepagent.eval.play import main

if __name__ == "__main__":
    sys.exit(main())
