"""What can be wrong with a slide or with its coordinates."""

from dinov2.utils.errors import UserError


class SlideError(UserError):
    """A slide cannot be opened or read, or its resolution is unknown."""


class CoordinatesError(UserError):
    """A coordinate file is missing, unreadable, or belongs to another slide."""
