"""What goes wrong, in one line each: the message names the file, row or key, and the mend."""


class LlmcoreError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class UsageError(LlmcoreError):
    """The call or the configuration is wrong (exit code 2)."""

    exit_code = 2


class NoSpaceError(LlmcoreError):
    """A disk is full."""


class LeaseLostError(LlmcoreError):
    """Somebody took over: stop before writing anything."""


class CorruptBlobError(LlmcoreError):
    """Stored bytes do not hash to their name."""


class OutageError(LlmcoreError):
    """A server is away or overloaded: the same again may well succeed in a while."""


class UnreachableError(OutageError, UsageError):
    """A server did not answer at first contact: it is away, or its address is wrong (exit code 2)."""
