import sys

from stepagent.training.pretrain.command import main

if __name__ == "__main__":
    sys.exit(main())
