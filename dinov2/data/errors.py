"""The errors that data can raise, so that callers can tell a wrong setting from a damaged file."""

from dinov2.utils.errors import UserError


class DatasetError(UserError):
    """A data set cannot be opened: unknown kind or key, missing or empty folder."""


class BadTileError(Exception):
    """One tile cannot be decoded.

    Args:
        path: the file (or other locator) of the tile.
        reason: what the decoder said.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class LoaderError(UserError):
    """A loader process has died, or cannot hand over its batches."""


class TooManyBadTilesError(UserError):
    """More tiles are damaged than `data.max_bad_fraction` allows."""
