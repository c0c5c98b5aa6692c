"""Everything can be imported where Unix's own modules are missing."""

import subprocess
import sys

UNIX = [
    "crypt",
    "curses",
    "dbm",
    "fcntl",
    "grp",
    "nis",
    "ossaudiodev",
    "posix_spawn",
    "pty",
    "pwd",
    "readline",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
]
CODE = f"""
import importlib, os, pkgutil, sys
import accelerate, datasets, matplotlib, peft, tensorboard, torch, transformers, trl, uvicorn
import torch.utils.tensorboard, torch.nn.attention.flex_attention, multiprocessing.resource_tracker
import matplotlib.pyplot, trl.trainer.dpo_trainer, trl.trainer.sft_trainer, spacy, requests, fastapi
from transformers import LlamaForCausalLM
for name in {UNIX}:
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "geteuid", "getuid", "sched_getaffinity", "killpg"):
    delattr(os, name)
import signal
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
import stepagent
names = [module.name for module in pkgutil.walk_packages(stepagent.__path__, "stepagent.")]
for folder in ("envs", "agents", "eval", "training"):
    package = importlib.import_module(f"stepagent.{{folder}}")
    names += [m.name for m in pkgutil.walk_packages(package.__path__, f"stepagent.{{folder}}.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_all_modules_can_be_imported_without_unix():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
