"""The choice of a backend: by argument, by configuration, by environment, by device, dtype and size."""

from typing import get_args, get_type_hints

import pytest
import torch

from dinov2.ops import dispatch, selective_scan
from dinov2.ops.dispatch import (
    Backend,
    BackendError,
    choose_backend,
    chosen_backends,
    force_backends,
    forced,
    keep_backend,
    register_backends,
    usable_backends,
)
from dinov2.utils.schema import KernelsSection


@pytest.fixture
def operator(monkeypatch):
    """An operator whose quick backend takes at most 4 states in float32."""
    monkeypatch.setattr(dispatch, "_operators", dict(dispatch._operators))
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "_overruled", set())
    register_backends(
        "op",
        (
            Backend("fast", lambda device, dtype, states: "it needs a TPU" if device != "tpu" else None),
            Backend("quick", lambda device, dtype, states: f"{states} states are too many" if states > 4 else None),
            Backend("slow", lambda device, dtype, states: None),
        ),
    )
    return "op"


def choose(operator, requested="auto", states=1):
    return choose_backend(operator, requested, "cpu", torch.float32, states)


def test_auto_takes_the_first_that_can_run_and_a_name_is_obeyed(operator):
    assert choose(operator) == "quick"
    assert choose(operator, states=5) == "slow"
    assert choose(operator, "slow") == "slow"
    assert usable_backends(operator) == ["slow"]
    assert usable_backends(operator, size=4) == ["quick", "slow"]


def test_the_configuration_goes_before_the_environment_and_a_caller_before_both(operator, monkeypatch):
    monkeypatch.setenv("DINOV2_OP_BACKEND", "slow")
    assert choose(operator) == "slow"
    with forced(op="quick"):
        assert choose(operator) == "quick"
        assert choose(operator, "slow") == "slow"
        with forced(op="slow"):
            assert choose(operator) == "slow"
        assert choose(operator) == "quick"
    assert choose(operator) == "slow"


def test_what_cannot_run_says_why_and_what_can(operator):
    with pytest.raises(
        BackendError, match=r"'quick' \(asked for .*cannot run: .*9 states are too many; .* one of slow"
    ):
        choose(operator, "quick", states=9)


def test_an_unknown_name_offers_the_nearest(operator, monkeypatch):
    with pytest.raises(BackendError, match=r"op: unknown backend 'quik'.*did you mean 'quick'"):
        choose(operator, "quik")
    with pytest.raises(BackendError, match=r"op: unknown backend 'quik'; did you mean 'quick'"):
        force_backends({"op": "quik"})
    with pytest.raises(BackendError, match=r"no operator 'selective_scam'; did you mean 'selective_scan'"):
        force_backends({"selective_scam": "auto"})
    monkeypatch.setenv("DINOV2_OP_BACKEND", "warp")
    with pytest.raises(BackendError, match=r"'warp' \(forced by DINOV2_OP_BACKEND\).*known: auto, fast, quick, slow"):
        choose(operator)


def test_a_refused_choice_leaves_the_others(operator):
    with pytest.raises(BackendError):
        force_backends({"op": "slow", "nothing": "slow"})
    assert choose(operator) == "quick"


def test_the_choice_is_reported_once_in_the_log_and_kept(operator, caplog):
    with caplog.at_level("INFO", logger="dinov2"):
        for _ in range(3):
            choose(operator)
    assert [r.getMessage() for r in caplog.records] == ["op: backend quick (on cpu; not fast: it needs a TPU)"]
    assert chosen_backends() == {"op": {"quick": "on cpu; not fast: it needs a TPU"}}


def test_turns_of_two_backends_are_not_reported_again_and_again(operator, caplog):
    with caplog.at_level("INFO", logger="dinov2"):
        for states in (1, 9, 1, 9):
            choose(operator, states=states)
    assert len(caplog.records) == 2
    assert list(chosen_backends()["op"]) == ["quick", "slow"]


def test_a_forced_choice_that_cannot_apply_is_warned_of_once(operator, caplog):
    with caplog.at_level("INFO", logger="dinov2"):
        assert keep_backend(operator, "auto", "slow", "a graph runs") == "slow"
        with forced(op="quick"):
            for _ in range(3):
                keep_backend(operator, "auto", "slow", "a graph runs")
            keep_backend(operator, "slow", "slow", "a graph runs")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "op: backend slow (a graph runs)"),
        ("WARNING", "op: backend slow instead of quick (forced for a part of the program): a graph runs"),
    ]
    assert chosen_backends() == {"op": {"slow": "a graph runs"}}
    with pytest.raises(BackendError, match="op: unknown backend 'quik'"):
        keep_backend(operator, "quik", "slow", "a graph runs")


def test_an_empty_variable_is_none(operator, monkeypatch):
    monkeypatch.setenv("DINOV2_OP_BACKEND", "")
    assert choose(operator) == "quick"


def test_operators_obey_the_environment(monkeypatch):
    x = torch.ones(1, 2, 3)
    arguments = (x, x, -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
    monkeypatch.setenv("DINOV2_SELECTIVE_SCAN_BACKEND", "reference")
    selective_scan(*arguments)
    assert "reference" in chosen_backends()["selective_scan"]
    monkeypatch.setenv("DINOV2_SELECTIVE_SCAN_BACKEND", "warp")
    with pytest.raises(ValueError, match="selective_scan: unknown backend 'warp'"):
        selective_scan(*arguments)


def test_the_configuration_offers_every_backend():
    sections = get_type_hints(KernelsSection)
    registered = {name: {"auto", *(b.name for b in dispatch._operators[name])} for name in sections}
    assert {name: set(get_args(choices)) for name, choices in sections.items()} == registered


def test_cuda_backends_are_refused_on_a_cpu():
    x = torch.ones(1, 2, 3)
    for name in ("triton", "vendor"):
        with pytest.raises(BackendError, match=f"{name}: it needs a CUDA device"):
            selective_scan(x, x, -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3), backend=name)
