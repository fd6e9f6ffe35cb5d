"""Runs commands one after another in this process: many more fit into a minute.

Reads a JSON list of words from each line of stdin; answers with {"code", "err"} of each. A command
that ends the process ends the answers.
"""

import contextlib
import io
import json
import os
import sys

from minitron_cli.main import main


def run(words: list[str]) -> tuple[int, str]:
    """The exit code and stderr of one command; what it prints is dropped."""
    sys.argv = ["minitron", *words]
    sys.stdin = io.StringIO()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as leave:
            return leave.code if isinstance(leave.code, int) else 0, err.getvalue()
    return 0, err.getvalue()


if __name__ == "__main__":
    requests = sys.stdin
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in requests:
        code, err = run(json.loads(line))
        answers.write(json.dumps({"code": code, "err": err}) + "\n")
