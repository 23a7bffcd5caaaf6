"""How long a step takes with the knobs of speed measured, against the bare loop as one writes it.

As `loop`, whose processes, order of rounds and clock it has; the loss at the end is beside, since a faster step that learns less
is none.
"""

from __future__ import annotations

from typing import Any

from loop import Worker

PEERS = ("bare", "ours", "measured")
MODELS = ("mlp", "cnn", "cnn32")
ROUNDS = 7


def run(options: Any) -> dict[str, Any]:
    rounds, threads = options.rounds or ROUNDS, options.threads or [2, 1]
    models = [model for model in MODELS if not options.only or model in options.only]
    settings = {"peers": [*PEERS], "batch": 64, "threads": threads, "models": models, "rounds": rounds}
    workers = {peer: Worker(peer) for peer in PEERS}
    samples = list[dict[str, Any]]()
    try:
        for count in threads:
            for model in models:
                for number in range(-1, rounds):  # round -1 warms up, and measures the knobs
                    for peer in PEERS[:: 1 if number % 2 else -1]:
                        figures = workers[peer].ask(model=model, threads=count)
                        if number >= 0:
                            samples.append({"model": model, "threads": count, "peer": peer, "round": number, **figures})
                print(f"speed: {model}, {count} threads, {rounds} rounds", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return {"settings": settings, "samples": samples}
