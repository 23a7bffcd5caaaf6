"""An optimiser for each rule, written by `tools/tables.py` from the rules themselves: `make tables`, not by hand."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.optim.optimizer import Optimizer


class Adadelta(Optimizer):
    """Adadelta: a step is as long as recent steps were, in the units of the weight, whatever the units of the loss.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 1.0, at least 0.
        rho: 0.9, in [0, 1).
        eps: 1e-6, in (0, inf).
        weight_decay: 0.0, at least 0; added to the gradient.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.Adadelta`. The equation:
    `thalweg.rules.adadelta`. Source: Zeiler 2012, arXiv:1212.5701.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "adadelta",
            lr=lr,
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Adafactor(Optimizer):
    """Adafactor: a second moment stored as one number per row and per column, and steps in proportion to the weights.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.01, at least 0.
        beta2_decay: -0.8, in (-inf, 0].
        eps: eps1 = 1.1920928955078125e-7, in (0, inf); eps2 = 0.001, in [0, inf).
        d: 1.0, in [1, inf).
        weight_decay: 0.0, at least 0; decoupled from the gradient.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.Adafactor`. The equation:
    `thalweg.rules.adafactor`. Source: Shazeer & Stern 2018, arXiv:1804.04235.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1.1920928955078125e-7, 0.001),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "adafactor",
            lr=lr,
            beta2_decay=beta2_decay,
            eps=eps,
            d=d,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Adagrad(Optimizer):
    """Adagrad: each weight's step is divided by the size of all its gradients so far.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.01, at least 0.
        lr_decay: 0.0, in [0, inf).
        weight_decay: 0.0, at least 0; added to the gradient.
        initial_accumulator_value: 0.0, in [0, inf).
        eps: 1e-10, in (0, inf).

    All others: see `Optimizer`. Sparse gradients are taken, without weight decay. Arguments come in the order of
    `torch.optim.Adagrad`. The equation: `thalweg.rules.adagrad`. Source: Duchi, Hazan & Singer 2011, JMLR 12.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "adagrad",
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Adam(Optimizer):
    """Adam: momentum divided by the usual size of the gradient, both freed of their bias towards zero.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.999, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.0, at least 0; added to the gradient.
        amsgrad: False, or True.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.Adam`. The equation: `thalweg.rules.adam`.
    Source: Kingma & Ba 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "adam",
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class AdamW(Optimizer):
    """AdamW: Adam whose weight decay shrinks the weights themselves instead of bending the gradient.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.999, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.01, at least 0; decoupled from the gradient.
        amsgrad: False, or True.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.AdamW`. The equation:
    `thalweg.rules.adamw`. Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "adamw",
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Adamax(Optimizer):
    """Adamax: Adam with the largest recent gradient in the place of the usual one, so no single step is longer than the
    rate.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.002, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.999, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.0, at least 0; added to the gradient.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.Adamax`. The equation:
    `thalweg.rules.adamax`. Source: Kingma & Ba 2015, arXiv:1412.6980, section 7.1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "adamax",
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class GradientDescent(Optimizer):
    """Gradient descent: a step straight downhill, as long as the slope is steep.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        weight_decay: 0.0, at least 0; added to the gradient.

    All others: see `Optimizer`. Sparse gradients are taken, without weight decay. The equation:
    `thalweg.rules.gradient_descent`. Source: Cauchy 1847, Comptes rendus 25, 536.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "gradient_descent",
            lr=lr,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Lion(Optimizer):
    """Lion: every weight moves by exactly the rate, in the direction of a momentum that weighs the newest gradient more.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.0001, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.99, in [0, 1).
        weight_decay: 0.0, at least 0; decoupled from the gradient.

    All others: see `Optimizer`. The equation: `thalweg.rules.lion`. Source: Chen et al. 2023, arXiv:2302.06675.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "lion",
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Momentum(Optimizer):
    """Heavy-ball momentum: a running sum of past gradients, like a marble that has built up speed.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        momentum: 0.9, in [0, 1).
        dampening: 0.0, in [0, 1].
        weight_decay: 0.0, at least 0; added to the gradient.

    All others: see `Optimizer`. Sparse gradients are taken, without weight decay. The equation:
    `thalweg.rules.momentum`. Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "momentum",
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Muon(Optimizer):
    """Muon: momentum whose matrix is made nearly orthogonal, so that every direction in it moves equally far.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        weight_decay: 0.1, at least 0; decoupled from the gradient.
        momentum: 0.95, in [0, 1).
        nesterov: True, or False.
        ns_coefficients: ns_a = 3.4445; ns_b = -4.775; ns_c = 2.0315.
        eps: 1e-7, in (0, inf).
        ns_steps: 5, in [0, 100).
        adjust_lr_fn: "match_rms_adamw"; one of "match_rms_adamw", "original", None.
        half: False, or True.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.Muon`. The equation: `thalweg.rules.muon`.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        half: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "muon",
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            half=half,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class NAdam(Optimizer):
    """NAdam: Adam that already looks where its momentum is about to take it.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.002, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.999, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.0, at least 0; decoupled where `decoupled_weight_decay` is true, else added to the gradient.
        momentum_decay: 0.004, in [0, inf).
        decoupled_weight_decay: False, or True.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.NAdam`. The equation:
    `thalweg.rules.nadam`. Source: Dozat 2016, ICLR workshop, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "nadam",
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Nesterov(Optimizer):
    """Nesterov's momentum: the heavy ball that already looks where it is about to roll.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        momentum: 0.9, in [0, 1).
        dampening: 0.0, in [0, 1].
        weight_decay: 0.0, at least 0; added to the gradient.

    All others: see `Optimizer`. Sparse gradients are taken, without weight decay. The equation:
    `thalweg.rules.nesterov`. Source: Nesterov 1983; Sutskever et al. 2013, ICML.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "nesterov",
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class NorMuon(Optimizer):
    """NorMuon: Muon whose steps are as long for every neuron, that is, for every row of a matrix.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        momentum: 0.95, in [0, 1).
        beta2: 0.95, in [0, 1).
        nesterov: True, or False.
        ns_coefficients: ns_a = 3.4445; ns_b = -4.775; ns_c = 2.0315.
        ns_steps: 5, in [0, 100).
        eps: 1e-7, in (0, inf).
        weight_decay: 0.1, at least 0; decoupled from the gradient.

    All others: see `Optimizer`. The equation: `thalweg.rules.normuon`. Source: Li et al. 2025, arXiv:2510.05491.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
        weight_decay: float = 0.1,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "normuon",
            lr=lr,
            momentum=momentum,
            beta2=beta2,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class Prodigy(Optimizer):
    """Prodigy: Adam that finds its own rate, a growing estimate of the distance from the starting weights to the solution.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 1.0, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.999, in [0, 1).
        beta3: 0.0, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.0, at least 0; decoupled where `decouple` is true, else added to the gradient.
        decouple: True, or False.
        use_bias_correction: False, or True.
        safeguard_warmup: False, or True.
        d0: 1e-6, in (0, inf).
        d_coef: 1.0, in (0, inf).
        growth_rate: 0.0, in [0, inf).

    All others: see `Optimizer`. The equation: `thalweg.rules.prodigy`. Source: Mishchenko & Defazio 2023,
    arXiv:2306.06101.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "prodigy",
            lr=lr,
            betas=betas,
            beta3=beta3,
            eps=eps,
            weight_decay=weight_decay,
            decouple=decouple,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
            d0=d0,
            d_coef=d_coef,
            growth_rate=growth_rate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class RAdam(Optimizer):
    """RAdam: Adam that takes plain momentum steps until its second moment is worth dividing by.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.001, at least 0.
        betas: beta1 = 0.9, in [0, 1); beta2 = 0.999, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.0, at least 0; decoupled where `decoupled_weight_decay` is true, else added to the gradient.
        decoupled_weight_decay: False, or True.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.RAdam`. The equation:
    `thalweg.rules.radam`. Source: Liu et al. 2020, arXiv:1908.03265.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "radam",
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class RMSprop(Optimizer):
    """RMSprop: each weight's step is divided by the usual size of its own gradient.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.01, at least 0.
        alpha: 0.99, in [0, 1).
        eps: 1e-8, in (0, inf).
        weight_decay: 0.0, at least 0; added to the gradient.
        momentum: 0.0, in [0, 1).
        centered: False, or True.

    All others: see `Optimizer`. Arguments come in the order of `torch.optim.RMSprop`. The equation:
    `thalweg.rules.rmsprop`. Source: Hinton 2012, Coursera lecture 6e; Graves 2013, arXiv:1308.0850.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "rmsprop",
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW: steps as long as Adam's from a fast sequence, whose running average is the result.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 0.0025, at least 0.
        betas: beta1 = 0.9, in (0, 1); beta2 = 0.999, in [0, 1).
        eps: 1e-8, in (0, inf).
        r: 0.0, in [0, inf).
        weight_lr_power: 2.0, in [0, inf).
        weight_decay: 0.0, at least 0; decoupled from the gradient.

    All others: see `Optimizer`. Evaluate and save the model within `averaged()` alone. The equation:
    `thalweg.rules.schedule_free_adamw`. Source: Defazio et al. 2024, arXiv:2405.15682.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        maximize: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "schedule_free_adamw",
            lr=lr,
            betas=betas,
            eps=eps,
            r=r,
            weight_lr_power=weight_lr_power,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            maximize=maximize,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )


class ScheduleFreeSGD(Optimizer):
    """Schedule-free SGD: gradients are taken between a fast sequence and its running average, and the average is the
    result.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, 1.0, at least 0.
        momentum: 0.9, in (0, 1).
        r: 0.0, in [0, inf).
        weight_lr_power: 2.0, in [0, inf).
        weight_decay: 0.0, at least 0; added to the gradient.

    All others: see `Optimizer`. Evaluate and save the model within `averaged()` alone. The equation:
    `thalweg.rules.schedule_free_sgd`. Source: Defazio et al. 2024, arXiv:2405.15682.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        maximize: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "schedule_free_sgd",
            lr=lr,
            momentum=momentum,
            r=r,
            weight_lr_power=weight_lr_power,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            maximize=maximize,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )
