"""The choice of a backend: by argument, by environment, by default."""

import pytest
import torch

from dinov2.ops import selective_scan, ssd
from dinov2.ops.dispatch import choose_backend, chosen_backends

AVAILABLE = ("reference", "cpu")


def test_auto_takes_the_default_and_a_name_is_obeyed():
    assert choose_backend("op_a", "auto", AVAILABLE, default="cpu") == "cpu"
    assert choose_backend("op_a", "reference", AVAILABLE, default="cpu") == "reference"


def test_the_environment_replaces_auto_only(monkeypatch):
    monkeypatch.setenv("DINOV2_OP_B_BACKEND", "reference")
    assert choose_backend("op_b", "auto", AVAILABLE, default="cpu") == "reference"
    assert choose_backend("op_b", "cpu", AVAILABLE, default="cpu") == "cpu"


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"op_c: unknown backend 'cuda'; choose one of auto, reference, cpu"):
        choose_backend("op_c", "cuda", AVAILABLE, default="cpu")


def test_the_choice_is_reported_once_in_the_log_and_kept(caplog):
    with caplog.at_level("INFO", logger="dinov2"):
        for _ in range(3):
            choose_backend("op_d", "auto", AVAILABLE, default="cpu")
    assert [record.getMessage() for record in caplog.records] == ["op_d: backend cpu (default)"]
    assert chosen_backends()["op_d"] == "cpu"


def test_operators_obey_the_environment(monkeypatch):
    monkeypatch.setenv("DINOV2_SELECTIVE_SCAN_BACKEND", "warp")
    monkeypatch.setenv("DINOV2_SSD_BACKEND", "reference")
    x = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="selective_scan: unknown backend 'warp'"):
        selective_scan(x, x, -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
    ssd(torch.ones(1, 3, 2, 1), torch.ones(1, 3, 2), -torch.ones(2), torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    assert chosen_backends()["ssd"] == "reference"
