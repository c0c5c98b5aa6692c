import sys

from stepagent.training.sweep.command import main

sys.exit(main())
