"""Simulated gene expression for patches of an H&E image: measured stains and structure in, integer counts out.

For each patch five quantities are measured: the mean density of haematoxylin and of eosin (colour deconvolution,
Ruifrok and Johnston 2001), the density of nuclei (local maxima of haematoxylin), how well the fibres are aligned
(structure tensor), and how fine the texture is. The colours of a patch tell the first three, not the last two. Each
simulated gene is a log-linear mixture of the five with weights of its own, and its counts are negative binomial.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FEATURES = ("haematoxylin", "eosin", "nuclei", "alignment", "granularity")
# Optical density of haematoxylin, eosin and DAB in red, green and blue.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
NUCLEUS_SIGMA = 2.0  # px, smoothing before the search for nuclei
NUCLEUS_WINDOW = 11  # px, at most one nucleus in such a square
NUCLEUS_DENSITY = 0.3  # smoothed haematoxylin above which a maximum counts as a nucleus


@dataclass(frozen=True)
class Simulation:
    """How strongly the genes follow the tissue.

    Attributes:
        genes: number of genes, named SIM001, SIM002, ...
        stain_weight: standard deviation of a gene's weights on the two stains.
        structure_weight: the same for nuclei, alignment and granularity.
        signal: standard deviation of the log rate over patches, before noise.
        shape: of the gamma noise on the rate; larger is less noise.
    """

    genes: int = 50
    stain_weight: float = 0.8
    structure_weight: float = 1.0
    signal: float = 0.8
    shape: float = 8.0


def gene_names(count: int) -> list[str]:
    """SIM001, SIM002, ..."""
    return [f"SIM{i + 1:03d}" for i in range(count)]


def stain_densities(image: NDArray[np.uint8]) -> Tensor:
    """Haematoxylin and eosin densities, (2, H, W) float32, of an RGB image (H, W, 3)."""
    vectors = np.asarray(STAINS)
    unmix = np.linalg.inv(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    density = -np.log10((image.astype(np.float64) + 1) / 256)  # (H, W, 3)
    stains = np.clip(density @ unmix, 0, None)[..., :2]
    return torch.from_numpy(np.ascontiguousarray(stains.transpose(2, 0, 1))).float()


def measure(image: NDArray[np.uint8], corners: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Measure `FEATURES` in square patches.

    Args:
        image: RGB, (H, W, 3).
        corners: x and y of each patch's upper left corner, (N, 2).
        size: side of a patch, pixels.

    Returns:
        One row a patch, (N, 5).
    """
    stains = stain_densities(image)
    haematoxylin = stains[:1]  # (1, H, W)
    smooth = gaussian(haematoxylin, NUCLEUS_SIGMA)
    highest = F.max_pool2d(smooth, NUCLEUS_WINDOW, stride=1, padding=NUCLEUS_WINDOW // 2)
    nuclei = ((smooth == highest) & (smooth > NUCLEUS_DENSITY)).float()
    gray = gaussian(stains.sum(0, keepdim=True), 1.5)
    dy, dx = torch.gradient(gray[0])
    fine = (haematoxylin - gaussian(haematoxylin, 1.5)).square()
    coarse = coarse_energy(haematoxylin)
    maps = torch.cat(
        [stains, nuclei, torch.stack([dx * dx - dy * dy, 2 * dx * dy, dx * dx + dy * dy]), fine, coarse]
    )  # (8, H, W)
    means = patch_means(maps.double(), corners, size)  # (N, 8)
    tensor_x, tensor_y, energy, fine_energy, broad_energy = means[:, 3:].T
    alignment = np.hypot(tensor_x, tensor_y) / (energy + 1e-9)
    granularity = np.log(fine_energy + 1e-6) - np.log(broad_energy + 1e-6)
    return np.column_stack([means[:, :3], alignment, granularity])


def coarse_energy(density: Tensor) -> Tensor:
    """Squared band of 4 to 12 px of (1, H, W), computed at a quarter of the resolution."""
    low = F.avg_pool2d(density, 4, ceil_mode=True, count_include_pad=False)
    band = (gaussian(low, 1.0) - gaussian(low, 3.0)).square()
    height, width = density.shape[1:]
    return band.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)[:, :height, :width]


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (C, H, W), edges replicated."""
    radius = int(np.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = F.pad(maps[:, None], (radius,) * 4, mode="replicate")  # (C, 1, H + 2r, W + 2r)
    return F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0]


def patch_means(maps: Tensor, corners: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Mean of each map (C, H, W) in each patch: (N, C)."""
    sums = F.pad(maps.cumsum(1).cumsum(2), (1, 0, 1, 0)).numpy()  # (C, H + 1, W + 1)
    x, y = corners.T
    total = sums[:, y + size, x + size] - sums[:, y, x + size] - sums[:, y + size, x] + sums[:, y, x]
    return np.asarray(total.T / size**2)


def simulate_counts(features: NDArray[np.float64], settings: Simulation, seed: int) -> NDArray[np.int64]:
    """Draw simulated counts.

    Args:
        features: one row a patch, all patches of all samples together, (N, 5).
        settings: strengths and noise.
        seed: decides the genes' weights and the noise.

    Returns:
        Counts, (N, genes).
    """
    rng = np.random.default_rng(seed)
    spread = np.maximum(features.std(0), 1e-9)
    scores = np.clip((features - features.mean(0)) / spread, -3, 3)  # (N, 5)
    scale = np.array([settings.stain_weight] * 2 + [settings.structure_weight] * 3)
    weights = rng.normal(size=(len(FEATURES), settings.genes)) * scale[:, None]
    signal = scores @ weights  # (N, genes)
    signal *= settings.signal / np.maximum(signal.std(0), 1e-9)
    base = np.exp(rng.uniform(np.log(4), np.log(40), size=settings.genes))  # counts of a typical patch
    rates = base * np.exp(signal) * rng.gamma(settings.shape, 1 / settings.shape, size=signal.shape)
    return np.asarray(rng.poisson(rates), dtype=np.int64)
