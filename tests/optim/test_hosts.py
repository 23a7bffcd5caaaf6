"""Our optimisers inside other projects' training loops: Lightning, Accelerate and skorch, each in every way that it has.

They come with `pip install -e ".[test-hosts]"`, which `make test-all` does; without it these tests are skipped.
"""

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from thalweg import optim

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]  # theirs, which are theirs to mend
HINT = 'is not installed here: pip install -e ".[test-hosts]", or make test-all'

KINDS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("AdamW", {}),
    ("Adam", {}),
    ("RMSprop", {"momentum": 0.5}),
    ("NAdam", {}),
]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
HOMES = (optim, torch.optim)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def loader():
    x = torch.randn(48, 5, generator=torch.Generator().manual_seed(8))
    return DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), batch_size=8)


def assert_alike(ends, **tolerances):
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, **(tolerances or {"rtol": 1e-4, "atol": 1e-6}))


def overflow_at(model, *steps):
    """Have the loss's gradient overflow at some backward passes, as too large a scale does."""
    seen = []

    def spoil(gradient):
        seen.append(None)
        return gradient * float("inf") if len(seen) - 1 in steps else gradient

    model[2].bias.register_hook(spoil)


def check_threads():
    """Lightning's tests end with this: no thread may be left but those that were there."""
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("thalweg")]
    assert left == []


# Lightning


@pytest.fixture
def lightning():
    return pytest.importorskip("pytorch_lightning", reason=f"Lightning {HINT}")


def lightning_end(lightning, home, kind, options, folder, *, plugins=None, spoils=(), automatic=True, **trainer):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization, self.rates = network(), automatic, []
            overflow_at(self.net, *spoils)

        def training_step(self, batch, index):
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            if automatic:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()
            self.lr_schedulers().step()
            return loss

        def configure_optimizers(self):
            optimizer = getattr(home, kind)(self.parameters(), lr=0.01, **options)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = Module()
    fitting = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=plugins() if plugins else None,
        **trainer,
    )
    fitting.fit(module, loader())
    check_threads()
    return fitting, [p.detach().clone() for p in module.net.parameters()]


@pytest.mark.parametrize(
    "clip", [{}, {"gradient_clip_val": 0.1}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}], ids=str
)
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_lightning_trains_in_every_precision_where_torchs_goes(lightning, precision, clip, tmp_path):
    for kind, options in KINDS[1:3]:
        ends = [
            lightning_end(
                lightning, home, kind, options, tmp_path, precision=precision, enable_checkpointing=False, **clip
            )[1]
            for home in HOMES
        ]
        rough = (
            {"rtol": 0.1, "atol": 0.02} if precision == "bf16-true" else {}
        )  # weights of sixteen bits round each step
        assert_alike(ends, **rough)


@every_kind
def test_lightning_with_a_gradient_scaler_and_clipping_skips_the_steps_that_it_skips_with_torchs(
    lightning, kind, options, tmp_path
):
    from pytorch_lightning.plugins import MixedPrecision

    def plugins():
        return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))]

    more = {"spoils": (1, 4), "gradient_clip_val": 0.5, "enable_checkpointing": False, "plugins": plugins}
    assert_alike(
        [lightning_end(lightning, home, kind, options, tmp_path, **more)[1] for home in HOMES], rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_with_manual_optimisation_and_with_accumulation(lightning, accumulate, tmp_path):
    more = {"accumulate_grad_batches": accumulate} if accumulate > 1 else {"automatic": False}
    more |= {"enable_checkpointing": False}
    assert_alike([lightning_end(lightning, home, "AdamW", {}, tmp_path, **more)[1] for home in HOMES])


@every_kind
def test_lightning_goes_on_from_its_checkpoint(lightning, kind, options, tmp_path):
    ends = []
    for home in HOMES:
        trainer, _ = lightning_end(lightning, home, kind, options, tmp_path / home.__name__)
        saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)["optimizer_states"][0]
        assert {*saved["param_groups"][0]} >= {"lr", "weight_decay", "foreach", "params"}
        model = network()
        optimizer = getattr(home, kind)(model.parameters(), lr=0.01, **options)
        optimizer.load_state_dict(saved)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        ends.append([*model.parameters()])
    assert_alike(ends)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightnings_fabric_clips_and_steps(lightning, precision):
    from lightning_fabric import Fabric

    ends = []
    for home in HOMES:
        fabric = Fabric(accelerator="cpu", precision=precision)
        model = network()
        model, optimizer = fabric.setup(model, home.AdamW(model.parameters(), lr=0.01))
        for x, y in loader():
            optimizer.zero_grad()
            fabric.backward(nn.functional.mse_loss(model(x), y))
            fabric.clip_gradients(model, optimizer, max_norm=0.1)
            optimizer.step()
        ends.append([*model.parameters()])
    assert_alike(ends, rtol=1e-3, atol=1e-5)


def test_lightnings_fabric_clips_what_a_scaler_scaled(lightning):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    ends = []
    for home in HOMES:
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**6))
        fabric = Fabric(accelerator="cpu", plugins=[precision])
        model = network()
        model, optimizer = fabric.setup(model, home.AdamW(model.parameters(), lr=0.01))
        for x, y in loader():
            optimizer.zero_grad()
            fabric.backward(nn.functional.mse_loss(model(x), y))
            fabric.clip_gradients(model, optimizer, max_norm=0.1)
            assert sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5 <= 0.1001
            optimizer.step()
        ends.append([*model.parameters()])
    assert_alike(ends, rtol=1e-2, atol=1e-3)


# Accelerate


@pytest.fixture
def accelerate():
    found = pytest.importorskip("accelerate", reason=f"Accelerate {HINT}")
    yield found
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def prepared(accelerate, home, kind, options, *, scale=None, **more):
    accelerator = accelerate.Accelerator(cpu=True, **more)
    if scale is not None:  # which Accelerate itself makes on accelerators only
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    model = network()
    optimizer = getattr(home, kind)(model.parameters(), lr=0.01, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return accelerator, model, *accelerator.prepare(model, optimizer, loader(), schedule)


def accelerated(accelerator, model, optimizer, batches, schedule, clip=None):
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("more", [{}, {"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("clip", [None, 0.1])
@every_kind
def test_accelerate_prepares_and_trains_where_torchs_goes(accelerate, kind, options, more, clip):
    ends = []
    for home in HOMES:
        accelerator, _, model, *rest = prepared(accelerate, home, kind, options, **more)
        accelerated(accelerator, model, *rest, clip=clip)
        ends.append([*accelerator.unwrap_model(model).parameters()])
    assert_alike(ends, rtol=1e-2, atol=1e-4)
    check_threads()


@every_kind
def test_accelerate_saves_and_loads_its_state_and_the_groups_are_what_they_were(accelerate, kind, options, tmp_path):
    accelerator, _, model, optimizer, *rest = prepared(accelerate, optim, kind, options)
    accelerated(accelerator, model, optimizer, *rest)
    before, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in model.parameters()]
    accelerator.save_state(str(tmp_path))
    accelerated(accelerator, model, optimizer, *rest)
    accelerator.load_state(str(tmp_path))
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert all(map(torch.equal, weights, model.parameters()))
    for n, entry in before["state"].items():
        assert all(torch.equal(value, optimizer.state_dict()["state"][n][key]) for key, value in entry.items())


@every_kind
def test_accelerate_sees_a_skipped_step_and_leaves_the_schedule_where_it_is(accelerate, kind, options):
    seen = []
    for home in HOMES:
        accelerator, inner, model, optimizer, batches, schedule = prepared(
            accelerate, home, kind, options, scale=2.0**8
        )
        overflow_at(inner, 0, 3)
        log = []
        for x, y in batches:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            log.append((optimizer.step_was_skipped, optimizer.param_groups[0]["lr"], accelerator.scaler.get_scale()))
        seen.append((log, [*model.parameters()]))
    assert seen[0][0] == seen[1][0]
    assert [skipped for skipped, *_ in seen[0][0]] == [True, False, False, True, False, False]
    assert_alike([weights for _, weights in seen])


# skorch


@pytest.fixture
def skorch():
    return pytest.importorskip("skorch", reason=f"skorch {HINT}")


@every_kind
def test_skorch_fits_with_schedules_clipping_and_groups_and_loads_what_it_saved(skorch, kind, options, tmp_path):
    from skorch import NeuralNetRegressor
    from skorch.callbacks import GradientNormClipping, LRScheduler

    x, y = loader().dataset.tensors
    ends = []
    for home in HOMES:
        net = NeuralNetRegressor(
            network(),
            optimizer=getattr(home, kind),
            lr=0.01,
            max_epochs=3,
            batch_size=8,
            train_split=None,
            verbose=0,
            iterator_train__shuffle=False,
            callbacks=[("clip", GradientNormClipping(0.5)), ("rate", LRScheduler("StepLR", step_size=1, gamma=0.5))],
            optimizer__param_groups=[("0.*", {"lr": 0.02, "weight_decay": 0.1})],
            **{f"optimizer__{name}": value for name, value in options.items()},
        )
        net.fit(x, y)
        net.save_params(f_params=tmp_path / "weights", f_optimizer=tmp_path / "state", f_history=tmp_path / "history")
        net.partial_fit(x, y, epochs=1)
        net.load_params(f_params=tmp_path / "weights", f_optimizer=tmp_path / "state", f_history=tmp_path / "history")
        net.partial_fit(x, y, epochs=1)
        copied = copy.deepcopy(net)
        copied.set_params(optimizer__lr=0.005)
        copied.partial_fit(x, y, epochs=1)
        ends.append([*net.module_.parameters(), *copied.module_.parameters()])
    assert_alike(ends, rtol=1e-3, atol=1e-5)


NOT_IN_ITS_WHEEL = "load_cuda_params_to_cpu or pickle_load"
"""Tests of skorch whose files are in its repository only."""


@pytest.mark.parametrize("module", [
    "test_net", "test_classifier", "test_regressor",
    "callbacks.test_lr_scheduler", "callbacks.test_training", "callbacks.test_regularization",
])  # fmt: skip
@pytest.mark.usefixtures("skorch")
def test_skorchs_own_tests_pass_with_ours_in_the_place_of_torchs(module, tmp_path):
    pytest.importorskip("flaky", reason=f"flaky {HINT}")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "in_torchs_place", "-p", "no:cacheprovider"]
    command += ["--pyargs", f"skorch.tests.{module}", "-k", f"not ({NOT_IN_ITS_WHEEL})", "-n", "0"]
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
