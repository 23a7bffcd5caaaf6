"""How long a step of the whole loop takes, against a loop written by hand and against others' trainers.

Each peer has a process of its own. In every round all of them train once, in one order in one round and in the reverse one in
the next, and a ratio is of two times of one round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PEERS = ("bare", "ours", "loader", "skorch_net", "lightning_trainer", "transformers_trainer")
ROUNDS = 9


def run(options: Any) -> dict[str, Any]:
    peers = [peer for peer in PEERS if not options.only or peer in ("bare", *options.only)]
    settings = {"peers": peers, "batch": 64, "threads": options.threads or [2, 1], "models": ["mlp", "cnn"]}
    settings["rounds"] = options.rounds or ROUNDS
    workers = {peer: Worker(peer) for peer in peers}
    samples = list[dict[str, Any]]()
    try:
        for threads in settings["threads"]:
            for model in settings["models"]:
                for number in range(-1, settings["rounds"]):  # round -1 warms up
                    for peer in peers[:: 1 if number % 2 else -1]:
                        figures = workers[peer].ask(model=model, threads=threads)
                        if number >= 0:
                            samples.append(
                                {"model": model, "threads": threads, "peer": peer, "round": number, **figures}
                            )
                print(f"loop: {model}, {threads} threads, {settings['rounds']} rounds", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return {"settings": settings, "samples": samples}


class Worker:
    """A peer's process."""

    def __init__(self, peer: str, script: str = "worker.py", *words: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name(script)), peer, *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peer = peer

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.peer} failed; BENCH_SHOW_ERRORS=1 in the environment shows why.")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
