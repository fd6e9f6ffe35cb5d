"""Errors as OpenAI's clients expect them: a document and an HTTP status."""

from typing import Any

from minitron_cli.errors import lacks_memory
from minitron_core.errors import MinitronError, Usage
from minitron_engine.process.aborts import no_memory

# the contract's exit codes as HTTP has them; everything else is a server error
_STATUS = {2: 400, 3: 404, 4: 400, 6: 503}


class BadRequest(Usage):
    """A request that cannot be answered: the field that is wrong, and OpenAI's code for why."""

    def __init__(self, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.parameter, self.code = parameter, code


def failure(error: Exception) -> tuple[dict[str, Any], int]:
    """The document and the HTTP status of an error."""
    if lacks_memory(error):
        error = no_memory()
    if isinstance(error, RecursionError):
        error = BadRequest("the body is nested too deeply")
    if not isinstance(error, MinitronError):
        return problem(f"{type(error).__name__}: {error}", "server_error"), 500
    status = _STATUS.get(error.exit_code, 500)
    kind = "invalid_request_error" if status < 500 else "server_error"
    parameter, code = getattr(error, "parameter", None), getattr(error, "code", None)
    hint = f" ({error.hint})" if error.hint else ""
    return problem(f"{error}{hint}", kind, parameter, code), status


def problem(
    message: str, kind: str, parameter: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
