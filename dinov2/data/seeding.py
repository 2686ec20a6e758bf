"""Randomness that belongs to the data: every draw comes from a key such as (seed, position), never from a worker."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*key: int | str) -> int:
    """Mix a key into one well-spread 64-bit seed, the same on every machine, process and Python version.

    Args:
        key: integers of any size and sign, and strings that name the purpose, e.g. `(seed, "mask", step)`.

    Returns:
        An integer in [0, 2**64).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        text = str(part).encode()
        kind = b"s" if isinstance(part, str) else b"i"
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(kind + len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def sample_seed(seed: int, position: int) -> int:
    """Seed of the augmentation of the sample at a global position of the stream.

    Args:
        seed: `train.seed`.
        position: number of samples of the global stream before this one.

    Returns:
        An integer in [0, 2**64).
    """
    return derive_seed(seed, "sample", position)


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*key)`."""
    return torch.Generator().manual_seed(derive_seed(*key))


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Run a block with the CPU torch RNG seeded, and put the RNG back as it was afterwards, also on an exception.

    Only the CPU generator is touched: accelerators' generators belong to the model.

    Args:
        seed: an integer in [0, 2**64).
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
