"""`stepagent view`; see the package."""

import sys

from stepagent.eval.view import main

if __name__ == "__main__":
    sys.exit(main())
