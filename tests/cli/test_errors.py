"""Errors that are not of this project become sentences and exit codes, too."""

import errno
from pathlib import Path

import pytest

from minitron_cli.errors import explain
from minitron_cli.server.errors import failure
from minitron_core.errors import from_os_error

NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")


def raised_while(first: BaseException) -> BaseException:
    try:
        try:
            raise first
        except BaseException:
            raise ValueError("what came of it") from None
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        NO_MEMORY,
        RuntimeError("can't start new thread"),
        ImportError("libc.so: failed to map segment from shared object"),
        raised_while(MemoryError()),
    ],
    ids=repr,
)
def test_explain_names_a_lack_of_memory(error: BaseException) -> None:
    failure = explain(error)
    assert failure is not None
    assert (failure.message, failure.exit_code) == ("there is not enough memory", 6)


def test_failure_of_memory_is_unavailable() -> None:
    document, status = failure(RuntimeError("can't start new thread"))
    assert status == 503
    assert document["error"]["message"].startswith("there is not enough memory (close other")


def test_explain_names_a_lack_of_memory_while_mapping() -> None:
    error = from_os_error(NO_MEMORY, Path("model.gguf"), "read")
    assert error.exit_code == 6 and "not enough memory to read model.gguf" in str(error)


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), ImportError("no module named x")])
def test_explain_leaves_bugs_alone(error: BaseException) -> None:
    assert explain(error) is None
