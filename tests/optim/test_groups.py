import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.errors import RuleError


@pytest.mark.parametrize("typo", ["weight_deacy", "betass", "maximise"])
def test_a_misspelt_option_in_a_group_is_refused_with_the_nearest_name(typo):
    with pytest.raises(RuleError, match=f"A parameter group names '{typo}'.*Did you mean"):
        optim.AdamW([{"params": [torch.zeros(1)], typo: 0.1}])


@pytest.mark.parametrize("extra", ["name", "initial_lr", "max_lr", "max_momentum", "base_momentum", "tag"])
def test_what_others_write_into_groups_is_left_to_them(extra):
    optimizer = optim.SGD([{"params": [torch.zeros(1)], extra: 0.5}])
    assert optimizer.param_groups[0][extra] == 0.5


def test_a_group_is_not_changed_in_the_callers_hands():
    group = {"params": [torch.zeros(1)], "beta1": 0.5}
    optimizer = optim.Adam([group])
    assert group.keys() == {"params", "beta1"}
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert "beta1" not in optimizer.param_groups[0]


def test_a_groups_setting_that_cannot_be_is_refused_and_the_group_not_added():
    optimizer = optim.AdamW([torch.zeros(1)])
    for group in ({"lr": -1.0}, {"beta2": 1.5}, {"weight_decay": float("inf")}):
        with pytest.raises(RuleError):
            optimizer.add_param_group({"params": [torch.zeros(1)], **group})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_given_twice_is_refused_and_named():
    w = torch.zeros(1)
    with pytest.raises(RuleError, match="parameter 1 stands twice"):
        optim.AdamW([w, w])
    with pytest.raises(RuleError, match="again stands twice"):
        optim.AdamW([("first", w), ("again", w)])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optim.AdamW([{"params": [w]}, {"params": [w]}])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_a_parameter_that_no_rule_can_move_is_refused(dtype):
    with pytest.raises(RuleError, match="parameter 0 is torch"):
        optim.AdamW([torch.zeros(1).to(dtype)])


@pytest.mark.parametrize("params", [torch.zeros(1), {torch.zeros(1)}, [3.0]])
def test_what_is_no_list_of_tensors_is_torchs_type_error(params):
    with pytest.raises(TypeError):
        optim.AdamW([{"params": params}] if isinstance(params, set) else params)


def test_no_parameters_and_parameters_that_were_calculated_are_torchs_value_errors():
    with pytest.raises(ValueError, match="empty parameter list"):
        optim.AdamW([])
    with pytest.raises(ValueError, match="non-leaf"):
        optim.AdamW([torch.zeros(1, requires_grad=True) * 2])


def test_names_are_kept_and_saved():
    model = nn.Linear(2, 1)
    optimizer = optim.AdamW([{"params": model.named_parameters(), "lr": 0.1}])
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
