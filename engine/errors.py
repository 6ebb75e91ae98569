"""Failures that a user can act on: one line with the value, the limit and the way out."""


class BareloopError(Exception):
    """An expected failure at a border (file, hub, device, model); programs print it and exit with 1."""


class UsageError(BareloopError):
    """What was asked for makes no sense (a flag, a name, a number); programs exit with 2."""
