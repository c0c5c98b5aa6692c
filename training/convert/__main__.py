import sys

from stepagent.training.convert.command import main

if __name__ == "__main__":
    sys.exit(main())
