"""One of several processes that train a sharded model, and the same whole beside it: `python sharded.py RANK WORLD FILE WAY`.

It fails where they are not the same. Every process draws the same data; each takes its own part of a batch.
"""

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from thalweg import optim

CASES = {
    "AdamW": {"lr": 0.05, "clip_norm": 0.5, "ema": 0.9},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "clip_value": 0.1, "clip_norm": 0.2},
    "RMSprop": {"lr": 0.01, "centered": True, "momentum": 0.5, "cautious": True},
    "Lion": {"lr": 0.01, "weight_decay": 0.1, "cautious": True},
    "Prodigy": {"d0": 1e-3},
    "ScheduleFreeAdamW": {"lr": 0.05},
    "Muon": {"lr": 0.05, "ema": 0.5},
    "Adafactor": {"lr": 0.05, "clip_norm": 0.5},
}
STEPS, HALF, DTYPE = 6, 4, torch.float64


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(
        DTYPE
    )  # of one row, the second of two processes has none


def batches(world):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(HALF * world, 3, generator=generator, dtype=DTYPE) for _ in range(STEPS)]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(way, world):
    """Give what to call and what holds the weights."""
    net = model()
    if way == "ddp":
        return DistributedDataParallel(net), net
    mesh = init_device_mesh("cpu", (world,))
    for part in (net[0], net[2], net):
        fully_shard(part, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in net.parameters())
    return net, net


def step(call, net, optimizer, x):
    optimizer.zero_grad()
    call(x).square().mean().backward()
    optimizer.step()
    return [whole(p.detach()).clone() for p in net.parameters()]


def same(found, wanted, what):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(whole(a), b, rtol=1e-9, atol=1e-12, msg=lambda m: f"{what}: {m}")


def follow(name, options, way, rank, world, engine):
    call, net = shard(way, world)
    alone = model()
    optimizer, other = (getattr(optim, name)(m.parameters(), engine=engine, **options) for m in (net, alone))
    what = f"{name} by {way} on {engine}"
    for x in batches(world):
        mine = x[HALF * rank : HALF * (rank + 1)]
        optimizer.measure = other.measure = True
        same(step(call, net, optimizer, mine), step(alone, alone, other, x), what)
        for key in ("gradient_norms", "weight_norms", "update_norms"):
            found, wanted = (torch.as_tensor(getattr(o.last, key)) for o in (optimizer, other))
            torch.testing.assert_close(
                found, wanted, rtol=1e-5, atol=1e-9, check_dtype=False, msg=lambda m: f"{what}: {m}"
            )
        torch.testing.assert_close(optimizer.last.clip_scale, other.last.clip_scale, rtol=1e-9, atol=0)
    for p, q in zip(net.parameters(), alone.parameters(), strict=True):
        for key, value in other.state[q].items():
            is_sharded = way == "fsdp" and value.ndim > 0 and value.shape == q.shape
            assert isinstance(optimizer.state[p][key], DTensor) is is_sharded, (what, key)
            same([optimizer.state[p][key]], [value], f"{what}: {key}")
    if optimizer.averages:
        with optimizer.averaged(), other.averaged():
            same(net.parameters(), alone.parameters(), f"{what}: average")
    return net, call, optimizer, alone, other


def skip_together(net, call, optimizer, alone, other, rank, world):
    """One process alone has a bad example: none of them moves."""
    x = batches(world)[0]
    x[-1] = torch.nan
    before = [whole(p.detach()).clone() for p in net.parameters()]
    same(step(call, net, optimizer, x[HALF * rank : HALF * (rank + 1)]), before, "a bad example")
    assert optimizer.last.skipped
    step(alone, alone, other, x)
    assert optimizer.last.nonfinite == other.last.nonfinite


def save_and_load(way, net, call, optimizer, alone, other, rank, world):
    """A state saved through PyTorch's distributed checkpoints goes on where it was."""
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
    fresh_call, fresh = shard(way, world)
    with torch.no_grad():
        for p, q in zip(fresh.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    continued = type(optimizer)(fresh.parameters(), lr=0.3, ema=optimizer.ema, clip_norm=optimizer.clip_norm)
    set_optimizer_state_dict(fresh, continued, saved)
    for x in batches(world):
        wanted = step(alone, alone, other, x)
        same(step(fresh_call, fresh, continued, x[HALF * rank : HALF * (rank + 1)]), wanted, "continued")


def main(rank, world, file, way):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    for engine in ("cpu", "tensors"):
        for name, options in CASES.items():
            followed = follow(name, options, way, rank, world, engine)
            if name == "AdamW":
                save_and_load(way, *followed, rank, world)
                skip_together(*followed, rank, world)
    dist.destroy_process_group()
    # To free a DistributedDataParallel is now and then to wait, with Python's lock, for a thread of torch's that waits for it.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
