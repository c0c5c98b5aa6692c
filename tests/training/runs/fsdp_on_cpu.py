"""`training.run` with accelerate's FSDP on CPUs, which accelerate itself offers for GPUs alone.

DIE_AT=stage:update in the environment kills it there, behind the checkpoint of the update before.
"""

import os
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from stepagent.training import run
from stepagent.training.runs.metrics import Metrics

_init = AcceleratorState.__init__


def _with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


AcceleratorState.__init__ = _with_fsdp  # type: ignore[method-assign]

_log = Metrics.log


def _log_or_die(self: Any, stage: str, update: int, **figures: float) -> None:
    if f"{stage}:{update}" == os.environ.get("DIE_AT"):
        os._exit(9)
    print(f"logs {stage}:{update}", flush=True)
    _log(self, stage, update, **figures)


Metrics.log = _log_or_die  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(run.main())
