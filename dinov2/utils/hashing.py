"""Telling whether two models have the same weights."""

import hashlib

import torch
from torch import nn


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of the names, dtypes, shapes and bytes of a model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}|{flat.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
