"""optax: the whole step is one function under `jax.jit`, and all buffers but the gradients are donated."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor

from peers.steps import Stepper


def make(starts: list[Tensor]) -> Stepper:
    guarded = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.01))
    transformation = optax.apply_if_finite(guarded, max_consecutive_errors=3)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(weights: Any, state: Any, average: Any, gradients: Any) -> Any:
        changes, state = transformation.update(gradients, state, weights)
        weights = optax.apply_updates(weights, changes)
        return weights, state, optax.incremental_update(weights, average, 0.001)

    weights, average = ([jnp.array(start.numpy()) for start in starts] for _ in range(2))
    buffers = [weights, transformation.init(weights), average]
    current_gradients = list[Any]()

    def prepare(gradients: list[Tensor]) -> None:
        current_gradients[:] = jax.block_until_ready([jnp.array(g.numpy()) for g in gradients])

    def step() -> None:
        buffers[:] = jax.block_until_ready(update(*buffers, current_gradients))

    return Stepper(prepare, step, lambda: [torch.tensor(np.asarray(w)) for w in buffers[0]])
