"""Writes the event files beside it, with PyTorch's own writer: `pip install tensorboard`, then `python write.py`.

Those that are kept were written by torch 2.13.0 with tensorboard 2.21.0. The tests read them without TensorBoard.
"""

import math
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
STEPS = 80


def main() -> None:
    from torch.utils.tensorboard import SummaryWriter

    for name, style in (
        ("simple_value", {}),
        ("tensor", {"new_style": True}),
        ("double", {"new_style": True, "double_precision": True}),
    ):
        writer = SummaryWriter(str(HERE / name))
        for step in range(STEPS):
            writer.add_scalar("train/loss", 2 / (step + 1), step, **style)
            writer.add_scalar("train/learning_rate", 0.1 * (1 - step / STEPS), step, **style)
            if step % 20 == 0:
                writer.add_scalar("eval/loss", 1 + step / 100, step, **style)
        writer.add_scalar("zero", 0.0, STEPS, **style)
        writer.add_scalar("lost", math.nan, STEPS, **style)
        if not style:
            writer.add_histogram("weights", torch.arange(5.0), 1)
            writer.add_image("image", torch.zeros(3, 4, 4), 1)
            writer.add_text("text", "no number", 1)
        writer.close()
    writer = SummaryWriter(str(HERE / "add_scalars"))
    for step in range(1, 30):
        writer.add_scalars("loss", {"train": 2 / step, "validation": 3 / step}, step)
    writer.close()
    writer = SummaryWriter(str(HERE / "without_steps"))
    for step in range(1, 30):
        writer.add_scalar("loss", 2 / step)
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
