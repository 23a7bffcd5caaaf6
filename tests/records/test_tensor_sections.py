import pytest
import torch

from thalweg.errors import CheckpointError
from thalweg.records.tensor_sections import join, split


def by_name(parts):
    return {f"{section}/{name}": tensor for section, held in parts.tensors.items() for name, tensor in held.items()}


def round_trip(state):
    parts = split(state)
    return join(parts.values, by_name(parts))


def test_tensors_are_named_by_their_place():
    state = {"model": {"layer.weight": torch.ones(2)}, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    assert set(by_name(split(state))) == {"model/layer.weight", "optimizer/state/0/exp_avg"}


def test_names_that_clash_are_told_apart():
    ones = [torch.full((1,), float(i)) for i in range(6)]
    state = {
        "s": {1: ones[0], "1": ones[1], "a/b": ones[2], "a": {"b": ones[3]}, "a~1b": ones[4], "__metadata__": ones[5]}
    }
    assert len(by_name(split(state))) == 6
    assert "s/__metadata__" not in by_name(split(state))
    back = round_trip(state)["s"]
    assert list(back) == list(state["s"])
    assert [back[1], back["1"], back["a/b"], back["a"]["b"], back["a~1b"], back["__metadata__"]] == ones


def test_the_same_memory_is_kept_once_and_is_one_tensor_again():
    weight = torch.randn(3, 3)
    parts = split(
        {"model": {"embed": weight, "head": weight.detach(), "again": weight.view(3, 3)}, "other": {"w": weight}}
    )
    assert list(by_name(parts)) == ["model/embed"]
    assert parts.aliases == dict.fromkeys(["model/head", "model/again", "other/w"], "model/embed")
    back = join(parts.values, by_name(parts))
    assert back["model"]["embed"] is back["model"]["head"] is back["other"]["w"]


def test_views_and_equal_copies_are_not_the_same_memory():
    weight, empty = torch.randn(3, 3), torch.zeros(0)
    state = {
        "m": {"w": weight, "t": weight.t(), "row": weight[0], "copy": weight.clone(), "e": empty, "f": torch.zeros(0)}
    }
    assert len(by_name(split(state))) == 6
    assert split(state).aliases == {}


def test_a_conjugate_is_not_the_same_as_what_it_conjugates():
    z = torch.tensor([1 + 2j])
    back = round_trip({"m": {"z": z, "c": z.conj(), "i": z.conj().imag, "z2": z}})["m"]
    assert back["z"].item() == 1 + 2j
    assert back["c"].item() == 1 - 2j
    assert back["i"].item() == -2
    assert back["z2"] is back["z"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2, 2).to_sparse(), "model/w is a tensor .*sparse"),
        (torch.empty(2, device="meta"), "model/w is a tensor without data"),
        (torch.ones(2).to(torch.float8_e4m3fnuz), "model/w is a tensor torch.float8_e4m3fnuz"),
        ((1, 2), "model/w is a tuple"),
        (torch.nn.Linear(1, 1), "model/w is of type Linear"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_place(value, said):
    with pytest.raises(CheckpointError, match=said):
        split({"model": {"w": value}})


@pytest.mark.parametrize("section", ["", "Model", "../model", "a/b", "a.b", "0", 3])
def test_a_section_is_named_so_that_it_can_be_a_file(section):
    with pytest.raises((CheckpointError, TypeError)):
        split({section: {}})
