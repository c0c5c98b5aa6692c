"""`python -m eval.agreement` is `stepagent agreement`."""

import sys

from stepagent.eval.agreement.command import main

if __name__ == "__main__":
    sys.exit(main())
