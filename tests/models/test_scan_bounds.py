"""Weights that the scans do not compute as they are: counted, and told when another program's are loaded."""

import logging
import math

import pytest
import torch

from dinov2.layers.scan import RATES, SMALLEST_STEP, SelectiveScan
from dinov2.models import build_backbone
from dinov2.models.checkpoint_files import IMPORTED, TRAINED
from dinov2.models.scan_bounds import channels_out_of_bounds
from dinov2.models.weights import load_backbone, save_backbone
from dinov2.utils.config import config_from_dict

TINY = {"embed_dim": 32, "num_heads": 2, "depth": 2}
# Blocks that scan, scans in each, and channels of one (Hydra: heads of 64).
SCANS = {"mvhybrid": (1, 1, 32), "vim_einfft": (2, 2, 64), "hydra_einfft": (2, 1, 1), "vit12": (0, 0, 0)}


def build(name):
    return build_backbone(name, **TINY, img_size=32)


def scans_of(model):
    return [module for module in model.modules() if hasattr(module, "A_log")]


@pytest.mark.parametrize("name", SCANS)
def test_none_is_out_of_bounds_at_the_start(name):
    assert channels_out_of_bounds(build(name)) == (0, math.prod(SCANS[name]))


@pytest.mark.parametrize("name", ["mvhybrid", "vim_einfft", "hydra_einfft"])
@pytest.mark.parametrize("log", [math.log(RATES[0]) - 0.1, math.log(RATES[1]) + 0.1, float("-inf")])
def test_a_rate_beyond_a_bound_counts_its_channel_once(name, log):
    model = build(name)
    for scan in scans_of(model)[:2]:
        scan.A_log.data.reshape(len(scan.A_log), -1)[0] = log
    assert channels_out_of_bounds(model)[0] == min(2, len(scans_of(model)))


@pytest.mark.parametrize("name", ["mvhybrid", "vim_einfft", "hydra_einfft"])
@pytest.mark.parametrize(("factor", "outside"), [(0.9, 1), (1.1, 0)])
def test_the_step_of_no_input_is_compared_with_the_smallest(name, factor, outside):
    model = build(name)
    scans_of(model)[0].dt_bias.data[0] = math.log(math.expm1(factor * SMALLEST_STEP))
    assert channels_out_of_bounds(model)[0] == outside


def test_what_is_counted_is_what_the_scan_changes():
    """Two channels with their rates at and beyond the bound scan alike, though their parameters differ."""
    scan = SelectiveScan(2, 3)
    scan.A_log.data[0], scan.A_log.data[1] = math.log(RATES[1]), math.log(RATES[1]) + 3
    u, delta, B = torch.ones(1, 4, 2), torch.zeros(1, 4, 2), torch.ones(1, 4, 3)
    y = scan(u, delta, B, B)
    assert torch.equal(y[..., 0], y[..., 1])


@pytest.mark.parametrize(("origin", "warned"), [(IMPORTED, True), (TRAINED, False)])
def test_loading_anothers_weights_tells_how_many(tmp_path, caplog, origin, warned):
    config = config_from_dict({"student": {"arch": "mvhybrid", **TINY}, "crops": {"global_crops_size": 32}})
    model = build("mvhybrid")
    scans_of(model)[0].A_log.data[:3] = 20.0
    path = tmp_path / "teacher.safetensors"
    save_backbone(path, model.state_dict(), config, None, origin)
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        load_backbone(path)
    expected = f"{path}: 3 of the 32 channels of its scans decay at rates outside [0.015625, 4096]"
    assert [expected in record.getMessage() for record in caplog.records] == [True] * warned
