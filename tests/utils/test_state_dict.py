"""Naming the parameters in which two models differ."""

import torch

from dinov2.utils.state_dict import LISTED, shapes_of, state_differences


def test_equal_states_have_no_differences():
    state = torch.nn.Linear(2, 3).state_dict()
    assert state_differences(shapes_of(state), shapes_of(state)) == ""


def test_each_kind_is_named():
    own = {"a": (1,), "b": (2, 3)}
    text = state_differences(own, {"b": (3, 2), "c": (1,)}, owner="vit12")
    assert text == "missing a; unexpected c; b has shape (3, 2) where vit12 has (2, 3)"


def test_a_long_list_is_cut_and_counted():
    text = state_differences({f"p{i}": (1,) for i in range(LISTED + 5)}, {})
    assert text.count("missing") == LISTED
    assert text.endswith(" and 5 more")
