"""The draws follow torchvision's distributions."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torchvision import transforms as T

from dinov2.data.crop_params import (
    MAX_DRAWS,
    PATHOLOGY_DRAWS,
    CropParams,
    _draw_crop,
    draw_crops,
    draw_jpeg_quality,
)
from dinov2.data.seeding import torch_seed
from dinov2.utils.schema import CropsSection, HedJitterSection, JitterSection, JpegSection

N = 1500
SIGNIFICANT = 1e-3


@pytest.fixture(scope="module")
def drawn() -> list[list[CropParams]]:
    """Crops of N tiles of 200 x 300 px with the default configuration."""
    torch.manual_seed(0)
    return [draw_crops(CropsSection(), 200, 300) for _ in range(N)]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_boxes_are_distributed_as_torchvisions(drawn: list[list[CropParams]], kind: int) -> None:
    crops = CropsSection()
    scale = crops.local_crops_scale if kind == 2 else crops.global_crops_scale
    image = torch.empty(3, 200, 300)
    reference = [T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(N)]
    ours = [(p[kind].top, p[kind].left, p[kind].height, p[kind].width) for p in drawn]
    for one, other in zip(zip(*ours, strict=True), zip(*reference, strict=True), strict=True):
        assert stats.ks_2samp(one, other).pvalue > SIGNIFICANT


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (1, 50)])
def test_boxes_lie_within_odd_tiles(height: int, width: int) -> None:
    for _ in range(50):
        for params in draw_crops(CropsSection(), height, width):
            assert params.height >= 1
            assert params.width >= 1
            assert 0 <= params.top <= height - params.height
            assert 0 <= params.left <= width - params.width


def test_box_of_a_long_tile_is_torchvisions_fallback() -> None:
    reference = T.RandomResizedCrop.get_params(torch.empty(3, 10, 400), [0.9, 1.0], [3 / 4, 4 / 3])
    params = draw_crops(CropsSection(global_crops_scale=(0.9, 1.0)), 10, 400)[0]
    assert (params.top, params.left, params.height, params.width) == reference


@pytest.mark.parametrize(("kind", "probability"), [(0, 0.0), (1, 0.9), (2, 0.5)])
def test_blur_has_its_real_probability(drawn: list[list[CropParams]], kind: int, probability: float) -> None:
    count = sum(p[kind].blur_sigma is not None for p in drawn)
    assert stats.binomtest(count, N, probability).pvalue > SIGNIFICANT


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_other_probabilities(drawn: list[list[CropParams]], kind: int) -> None:
    crops = CropsSection()
    for count, probability in [
        (sum(p[kind].flip for p in drawn), crops.horizontal_flip_p),
        (sum(p[kind].grayscale for p in drawn), crops.grayscale_p),
        (sum(bool(p[kind].jitter) for p in drawn), crops.color_jitter.p),
        (sum(p[kind].solarize for p in drawn), 0.0),
    ]:
        assert stats.binomtest(count, N, probability).pvalue > SIGNIFICANT


def test_solarize_is_per_crop_type() -> None:
    params = draw_crops(CropsSection(solarize_p=(0.0, 1.0, 0.0)), 50, 50)
    assert [p.solarize for p in params] == [False, True] + [False] * 8


def test_sigma_and_jitter_factors_are_uniform(drawn: list[list[CropParams]]) -> None:
    every = [p for tile in drawn for p in tile]
    sigmas = [p.blur_sigma for p in every if p.blur_sigma is not None]
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > SIGNIFICANT
    for operation, low, high in [
        ("brightness", 0.8, 1.2),
        ("contrast", 0.8, 1.2),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ]:
        factors = [factor for p in every for name, factor in p.jitter if name == operation]
        assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > SIGNIFICANT


def test_jitter_and_blur_are_distributed_as_torchvisions(drawn: list[list[CropParams]]) -> None:
    every = [p for tile in drawn for p in tile]
    ranges = [(0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.1, 0.1)]
    reference = [T.ColorJitter.get_params(*map(list, ranges)) for _ in range(N)]
    for number, operation in enumerate(("brightness", "contrast", "saturation", "hue")):
        factors = [factor for p in every for name, factor in p.jitter if name == operation]
        assert stats.ks_2samp(factors, [draw[number + 1] for draw in reference]).pvalue > SIGNIFICANT
        places = [[name for name, _ in p.jitter].index(operation) for p in every if p.jitter]
        theirs = [draw[0].tolist().index(number) for draw in reference]
        table = [[row.count(place) for place in range(4)] for row in (places, theirs)]
        assert stats.chi2_contingency(table).pvalue > SIGNIFICANT
    sigmas = [p.blur_sigma for p in every if p.blur_sigma is not None]
    assert stats.ks_2samp(sigmas, [T.GaussianBlur.get_params(0.1, 2.0) for _ in range(N)]).pvalue > SIGNIFICANT


def test_every_jitter_order_is_equally_likely(drawn: list[list[CropParams]]) -> None:
    orders = Counter(tuple(name for name, _ in p.jitter) for tile in drawn for p in tile if p.jitter)
    assert len(orders) == math.factorial(4)
    assert stats.chisquare(list(orders.values())).pvalue > SIGNIFICANT


def test_draws_are_independent_of_one_another(drawn: list[list[CropParams]]) -> None:
    blurred = [p[1].blur_sigma is not None for p in drawn]
    for other in ([p[1].flip for p in drawn], [p[1].grayscale for p in drawn], [p[2].flip for p in drawn]):
        table = [[sum(b == x and o == y for b, o in zip(blurred, other, strict=True)) for x in (0, 1)] for y in (0, 1)]
        assert stats.chi2_contingency(table).pvalue > SIGNIFICANT


def test_strengths_of_zero_leave_the_operation_out() -> None:
    jitter = JitterSection(brightness=0.5, contrast=0.0, saturation=0.0, hue=0.0, p=1.0)
    for params in draw_crops(CropsSection(color_jitter=jitter), 50, 50):
        assert [name for name, _ in params.jitter] == ["brightness"]


def test_strong_jitter_does_not_go_below_zero() -> None:
    crops = CropsSection(color_jitter=JitterSection(brightness=3.0, p=1.0))
    factors = [dict(p.jitter)["brightness"] for _ in range(100) for p in draw_crops(crops, 50, 50)]
    assert min(factors) >= 0
    assert max(factors) > 3


def test_the_longest_sequence_of_draws_is_exactly_what_is_taken() -> None:
    crops = replace(CropsSection(), blur_p=(1.0, 1.0, 1.0))
    misses = [0.999, 0.999] * 9  # nearly the whole area at an extreme aspect ratio does not fit a square
    draws = iter(misses + [0.0] * (MAX_DRAWS - len(misses)))
    more = iter([0.0] * PATHOLOGY_DRAWS)
    params = _draw_crop(replace(crops, hed_jitter=HedJitterSection(p=1.0)), 0, 64, 64, draws, more)
    assert len(params.jitter) == 4
    assert params.blur_sigma is not None
    assert list(draws) == []
    assert list(more) == []


def test_pathology_is_off_by_default(drawn: list[list[CropParams]]) -> None:
    assert not any(p.vertical_flip or p.quarter_turns or p.stain for tile in drawn for p in tile)
    assert not any(draw_jpeg_quality(CropsSection()) for _ in range(50))


def test_pathology_has_its_distributions() -> None:
    hed = HedJitterSection(sigma=(0.1, 0.2, 0.3), bias=(0.01, 0.0, 0.05), p=0.6)
    crops = CropsSection(vertical_flip_p=0.3, rotate90_p=0.75, hed_jitter=hed)
    torch.manual_seed(1)
    every = [p for _ in range(300) for p in draw_crops(crops, 64, 64)]
    assert stats.binomtest(sum(p.vertical_flip for p in every), len(every), 0.3).pvalue > SIGNIFICANT
    turns = Counter(p.quarter_turns for p in every)
    assert stats.chisquare([turns[number] for number in range(4)]).pvalue > SIGNIFICANT  # all four alike at 0.75
    stains = [p.stain for p in every if p.stain is not None]
    assert stats.binomtest(len(stains), len(every), 0.6).pvalue > SIGNIFICANT
    for number in range(3):
        sigma, bias = hed.sigma[number], hed.bias[number]
        gains = [stain.gain[number] for stain in stains]
        assert stats.kstest(gains, stats.uniform(1 - sigma, 2 * sigma).cdf).pvalue > SIGNIFICANT
        biases = [stain.bias[number] for stain in stains]
        if bias:
            assert stats.kstest(biases, stats.uniform(-bias, 2 * bias).cdf).pvalue > SIGNIFICANT
        else:
            assert set(biases) == {0.0}


def test_jpeg_qualities_are_uniform_over_their_range() -> None:
    torch.manual_seed(2)
    drawn = [draw_jpeg_quality(CropsSection(jpeg=JpegSection(quality=(70, 79), p=0.5))) for _ in range(4000)]
    qualities = Counter(quality for quality in drawn if quality is not None)
    assert stats.binomtest(sum(qualities.values()), 4000, 0.5).pvalue > SIGNIFICANT
    assert sorted(qualities) == list(range(70, 80))
    assert stats.chisquare(list(qualities.values())).pvalue > SIGNIFICANT


def test_switching_pathology_on_leaves_the_other_draws_as_they_were() -> None:
    on = CropsSection(vertical_flip_p=1.0, rotate90_p=1.0, hed_jitter=HedJitterSection(p=1.0))
    with torch_seed(3):
        plain = draw_crops(CropsSection(), 100, 80)
    with torch_seed(3):
        changed = draw_crops(on, 100, 80)
    assert all(p.vertical_flip and p.quarter_turns and p.stain for p in changed)
    assert [replace(p, vertical_flip=False, quarter_turns=0, stain=None) for p in changed] == plain
