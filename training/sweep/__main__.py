import sys

from stepagent.training.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
