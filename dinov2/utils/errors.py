"""Exceptions meant for the user: each names the value, the rule and the fix."""


class UserError(ValueError):
    """Something the user gave is wrong; command lines print it without a traceback and exit with code 2."""


class ConfigError(UserError):
    """A configuration cannot be used."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit."""


class RunFolderError(UserError):
    """An output folder holds something else than this run."""


class DivergenceError(UserError):
    """The loss is no longer a finite number."""
