"""Counted operations against closed forms; a multiply-add counts once."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dinov2.models import build_backbone
from dinov2.models.__main__ import cpu_model, main, tokens_per_second
from dinov2.models.flops import UncountedOperatorError, count_flops, count_parameters

D, IMG, PATCH = 64, 64, 16
N = (IMG // PATCH) ** 2  # patches
L = N + 1
EMBED = N * D * 3 * PATCH**2


def count(name, blocks, batch=1):
    model = build_backbone(name, embed_dim=D, num_heads=2, img_size=IMG, blocks=blocks)
    return count_flops(model, torch.zeros(batch, 3, IMG, IMG))


def scan(channels, states):
    """delta A, decay h, + delta B u, C h for each state; delta u once."""
    return L * channels * (4 * states + 1)


ATTENTION = 4 * L * D * D + 2 * L * L * D
MLP = 8 * L * D * D
# Two transforms of 4 L points in each of D / 4 channels (5/2 n log2 n), two complex layers of four D/4 x D/4 blocks.
EINFFT = 2 * (D // 4) * 2.5 * 4 * L * math.log2(4 * L) + 2 * 4 * L * D * (D // 4)
MAMBA_VISION = L * (2 * D * D + 2 * 4 * D + D * (D // 16 + 32) + (D // 16) * D + 2 * D * D) + scan(D, 16)
E = 2 * D
VIM = L * (2 * D * E + 2 * (4 * E + E * (D // 16 + 32) + (D // 16) * E) + E * D) + 2 * scan(E, 16)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("attention + mlp", ATTENTION + MLP),
        ("attention + einfft", ATTENTION + EINFFT),
        ("mamba_vision + einfft", MAMBA_VISION + EINFFT),
        ("vim + mlp", VIM + MLP),
    ],
)
def test_closed_forms(block, expected):
    assert count("mvhybrid", [f"1 x {block}"]) == pytest.approx(EMBED + expected, abs=4)
    assert count("mvhybrid", [f"3 x {block}"], batch=2) == pytest.approx(2 * (EMBED + 3 * expected), abs=8)


def test_hydra():
    """One chunk of the state-space dual form for each direction: scores that the heads share, then mixing by head."""
    inner, states, width, heads = 2 * D, 64, 64, 2
    mixed = inner + 4 * states
    layers = L * (D * (inner + mixed + 2 * heads) + 7 * mixed + inner * heads + inner * D)
    expected = EMBED + layers + 2 * (L * L * states + heads * L * L * width) + MLP
    assert count("mvhybrid", ["1 x hydra + mlp"]) == pytest.approx(expected, abs=4)


@pytest.mark.parametrize("name", ["vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid"])
def test_every_backbone_can_be_counted_with_registers_and_other_sizes(name):
    model = build_backbone(name, embed_dim=D, num_heads=2, depth=2, img_size=IMG, num_register_tokens=2).train()
    small, large = (count_flops(model, torch.zeros(1, 3, side, side)) for side in (32, 96))
    assert 0 < small < large
    assert model.training


class Unusual(nn.Module):
    """A module that sorts."""

    def forward(self, x):
        return torch.cummax(x, 0).values


def test_an_operator_without_a_handle_is_an_error():
    with pytest.raises(UncountedOperatorError, match=r"no handle counts aten::cummax"):
        count_flops(Unusual(), torch.zeros(3))


def test_frozen_parameters_are_not_counted():
    layer = nn.Linear(3, 4)
    assert count_parameters(layer) == 16
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12


def test_the_table(capsys):
    assert main(["vit12_tiny", "mvhybrid_tiny", "--sizes", "64", "--no-speed"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["backbone", "parameters", "GFLOPs", "64", "blocks"]
    assert [row.split()[0] for row in rows] == ["vit12_tiny", "mvhybrid_tiny"]
    length, dim = 17, 192
    expected = 16 * dim * 768 + 12 * (12 * length * dim * dim + 2 * length * length * dim)
    assert f"{expected / 1e9:.2f}" in rows[0].split()
    assert "12 x mamba_vision + einfft, 12 x attention + mlp" in rows[1]
    assert f"{count_parameters(build_backbone('mvhybrid_tiny')) / 1e6:.1f}" in rows[1].split()


def test_the_table_gives_tokens_per_second_and_says_where(capsys, monkeypatch):
    """A clock that advances an eighth of a second at every reading makes every forward pass take as long."""
    ticks = itertools.count()
    monkeypatch.setattr("dinov2.models.__main__.time", SimpleNamespace(perf_counter=lambda: next(ticks) / 8))
    assert main(["vit12_tiny", "--sizes", "64"]) == 0
    header, row, where = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["tokens/s", "blocks"]
    assert row.split("  12 x attention")[0].split()[-1] == f"{4 * (1 + 14 * 14) * 8:,.0f}"
    assert f"on {cpu_model()}, 1 threads, torch {torch.__version__}" in where
    assert next(ticks) == 2 * 4  # half a second of repetitions


def test_registers_count_as_tokens(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("dinov2.models.__main__.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    model = build_backbone("vit12", embed_dim=D, num_heads=2, depth=1, num_register_tokens=4)
    assert tokens_per_second(model) == 4 * (1 + 4 + 14 * 14)


def test_the_table_names_an_unknown_backbone(capsys):
    assert main(["vit13"]) == 2
    assert "unknown backbone 'vit13'; did you mean 'vit12'" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "nearest"), [("60", 64), ("0", 16), ("-16", 16)])
def test_the_table_names_an_impossible_size(capsys, size, nearest):
    assert main(["vit12_tiny", "--sizes", size]) == 2
    assert f"nearest valid size is {nearest} x {nearest}" in capsys.readouterr().err
