"""A process that has torch imported and forks a child for each run asked for, so that many runs can be killed cheaply.

Reads lines `verb case folder` and writes `pid N`, then `exit CODE` when that child is gone. It runs no torch operation itself,
so that its children start as if they were fresh.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path

import torch._dynamo  # the first optimiser imports it anyway, and here once is enough

import thalweg as tw
from thalweg.records.task import Source

cases = importlib.import_module(sys.argv[1])  # of tasks and plans by name


def live(verb: str, case: str, folder: str) -> None:
    if verb == "train":
        task = Source(file=str(Path(cases.__file__)), arguments={"case": case}).load()
        tw.train(task, cases.plan(case), out=folder)
    else:
        tw.resume(folder)


def main() -> None:
    for line in sys.stdin:
        verb, case, folder = line.split(maxsplit=2)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                live(verb, case, folder.strip())
                status = 0
            except BaseException:
                Path(folder.strip() + ".err").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        print(f"pid {pid}", flush=True)
        print(f"exit {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
