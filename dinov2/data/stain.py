"""Jitter of the stains of a histological image by colour deconvolution.

Ruifrok and Johnston 2001 (Anal. Quant. Cytol. Histol. 23:291): the optical density -log10 of the channels is a sum of
the stains' spectra times their amounts. Tellez et al. 2018 (doi 10.1109/TMI.2018.2820199): multiply the amounts by
random gains and add random biases. Amounts enter the density linearly, so all of it is one 3 x 3 matrix and one offset
on the logarithm of the image.
"""

import functools
import math

import torch
from torch import Tensor

# Optical density of haematoxylin, eosin and DAB in red, green and blue; each row is scaled to length 1.
SPECTRA = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
DARKEST = 1 / 255  # a value below one grey level counts as one: black has no logarithm


def jitter_stains(images: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Change the amounts of the stains.

    Args:
        images: (R, H, 3, W) float32 in [0, 1].
        gain: (R, 3), factors of the amounts of haematoxylin, eosin and DAB; 1 changes nothing.
        bias: (R, 3), what is added to the amounts, in units of optical density to base 10; 0 changes nothing.

    Returns:
        The images with the new amounts, in [0, 1].
    """
    mixing, unmixing = _matrices(images.device)
    matrix = (mixing * gain[:, None]) @ unmixing  # (R, 3, 3)
    offset = bias @ mixing.T * -math.log(10)  # (R, 3)
    logs = images.clamp(min=DARKEST).log_()
    changed = torch.matmul(matrix[:, None], logs)  # (R, H, 3, W)
    return changed.add_(offset[:, None, :, None]).exp_().clamp_(max=1)


@functools.lru_cache(maxsize=8)  # a copy to the device in every batch would make the host wait
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """From amounts to densities (3 channels, 3 stains), and back."""
    spectra = torch.tensor(SPECTRA, dtype=torch.float64)
    spectra /= spectra.norm(dim=1, keepdim=True)
    return spectra.T.float().to(device), spectra.inverse().T.float().to(device)
