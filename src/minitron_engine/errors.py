"""What can go wrong, as one exception per exit code of the command line."""


class MinitronError(Exception):
    """A failure that is explained in one sentence, with what to do next as a hint."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Usage(MinitronError):
    """The request itself makes no sense."""

    exit_code = 2


class NotFound(MinitronError):
    """An input does not exist."""

    exit_code = 3


class Unsupported(MinitronError):
    """A model or a level that cannot be handled."""

    exit_code = 4


class ImatrixNeeded(MinitronError):
    """A level that cannot be encoded without an importance matrix."""

    exit_code = 5


class OutOfResources(MinitronError):
    """Not enough disk or memory."""

    exit_code = 6


class Denied(MinitronError):
    """The network or a permission stands in the way."""

    exit_code = 7


class Damaged(MinitronError):
    """An input whose bytes cannot be right."""

    exit_code = 8
