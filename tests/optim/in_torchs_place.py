"""A plugin for pytest that puts thalweg's optimisers in the place of PyTorch's, for other projects' own tests.

`python -m pytest -p in_torchs_place --pyargs skorch.tests.test_net`
"""

import torch

from thalweg import optim

for name in torch.optim.__all__:
    if isinstance(kind := getattr(optim, name, None), type) and name != "Optimizer":
        setattr(torch.optim, name, kind)
