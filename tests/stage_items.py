"""Items that end in every way an item can, for the processes of tests/test_stages.py."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu.item import Item
from bench.launched import COUNTS
from bench.providers.contender import Unserved


def launched(x):
    COUNTS["fprop"] += 1
    return (x + 1,)


def raising(x):
    raise RuntimeError("a refusal\nof two lines")


def aborting(x):
    print("said before the end", file=sys.stderr, flush=True)
    os.abort()


def leaving(x):
    os._exit(7)


def hanging(x):
    Path(os.environ["STAGE_PID"]).write_text(str(os.getpid()))
    time.sleep(600)


def printing(x):
    print("this is no answer")
    return launched(x)


def unwritten(x):
    COUNTS["fprop"] += 1
    return (torch.empty(x.shape),)


def no_plan():
    raise Unserved("this GPU has no such plan")


CALLS: dict[str, Callable] = {
    "right": launched,
    "raises": raising,
    "aborts": aborting,
    "leaves": leaving,
    "prints": printing,
    "hangs": hanging,
    "launches nothing": lambda x: (x + 1,),
    "wrong": lambda x: launched(x + 1),
    "unwritten": unwritten,
    "right at last": launched,
}


def items():
    def judge(tensors, results):
        error = float((results[0] - tensors[0] - 1).abs().max())
        return float("inf") if error != error else 2 * error

    found = {name: Item(name, lambda device: [torch.ones(3, device=device)], call, judge) for name, call in CALLS.items()}
    return found | {"unserved": Item("unserved", lambda device: [], launched, judge, no_plan)}
