"""What the tests of the commands share."""

import io
import sys
from typing import Any

import pytest

from minitron_cli.main import main
from support import Ran


@pytest.fixture
def minitron(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process, as the console script does."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["minitron", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        monkeypatch.setenv("COLUMNS", "120")
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 0
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
