"""`python -m eval.bench`: the command of `stepagent.bench`, which is above all layers."""

import sys

from stepagent.bench import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
