"""Two processes that share the batches of a surface have its losses, gradients, products and pictures, both the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CODE = """
import sys
import numpy as np, torch, torch.distributed as dist
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.objective import Objective
from thalweg.landscape.processes import Processes
from thalweg.landscape.slices import plane
from thalweg.records.task import Task

folder, kind, rank, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if count > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
torch.manual_seed(0)
x, y = torch.randn(60, 40, dtype=torch.float64), torch.randint(0, 3, (60,))
first = nn.Linear(40, 6)
model = nn.Sequential(weight_norm(first) if kind == "differences" else first, nn.Tanh(), nn.Linear(6, 3)).double().eval()
batches = 1 if kind == "one batch" else 5
parts = [Part(batch, len(batch[0]) / 60) for batch in zip(x.split(60 // batches), y.split(60 // batches))]
surface = ModelSurface(
    model, Objective(Task(model=model, loss=nn.CrossEntropyLoss(), data=(x, y))), parts, share_of_data=0.5,
    processes=Processes() if count > 1 else None,
)
surface.check_symmetric()
point = surface.point
slope = surface.slope(point)
pairs = eigenpairs(surface.hessian(point), point, top=2, bottom=1)
directions = (pairs.top_vectors[0], pairs.top_vectors[1])
grid = plane(surface, point, directions, np.linspace(-1, 1, 11), np.linspace(-1, 1, 11))
torch.save(
    {"loss": slope.loss, "error": slope.squared_error, "gradient": slope.gradient, "top": pairs.top, "bottom": pairs.bottom,
     "losses": grid.losses, "measured": grid.is_measured, "differences": bool(surface.differences)},
    f"{folder}/{count}-{rank}.pt",
)
if count > 1:
    dist.destroy_process_group()
"""


def measured(folder: Path, kind: str, count: int) -> list[dict[str, object]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", CODE, str(folder), kind, str(rank), str(count)], env=environment)
        for rank in range(count)
    ]
    assert [process.wait(120) for process in started] == [0] * count
    return [torch.load(folder / f"{count}-{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.mark.parametrize("kind", ["plain", "differences", "one batch"])
def test_they_measure_what_one_process_does(tmp_path, kind):
    (alone,) = measured(tmp_path, kind, 1)
    one, other = measured(tmp_path, kind, 2)
    assert one["differences"] == other["differences"] == alone["differences"] == (kind == "differences")
    for name in ("loss", "error", "top", "bottom"):
        assert one[name] == other[name]
        assert one[name] == pytest.approx(alone[name], rel=1e-4 if kind == "differences" else 1e-8, abs=1e-12)
    assert torch.equal(one["gradient"], other["gradient"])
    torch.testing.assert_close(one["gradient"], alone["gradient"])
    assert np.array_equal(one["losses"], other["losses"])
    np.testing.assert_allclose(one["losses"], alone["losses"], rtol=1e-4 if kind == "differences" else 1e-7)
    assert np.array_equal(one["measured"], alone["measured"])
