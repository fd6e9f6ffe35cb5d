"""Run a command, and die before the n-th line of our code that its main thread executes.

    python traced.py FATAL FILE WORD...

With FATAL −1 it runs to its end and FILE gets the lines that were executed, in order, as JSON:
the names of the lines, and a list of indexes into them.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any


class Lines:
    """Collects the lines of our packages that are executed, and dies before the n-th."""

    def __init__(self, fatal: int) -> None:
        self.names: dict[str, int] = {}
        self.seen: list[int] = []
        self._fatal = fatal

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        path = frame.f_code.co_filename
        if "/minitron_" not in path:
            return None
        if event == "line":
            if len(self.seen) == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            name = f"{Path(path).name}:{frame.f_lineno}"
            self.seen.append(self.names.setdefault(name, len(self.names)))
        return self


def main() -> None:
    fatal, file = int(sys.argv[1]), Path(sys.argv[2])
    sys.argv[:] = ["minitron", *sys.argv[3:]]
    lines = Lines(fatal)
    sys.settrace(lines)
    try:
        from minitron_cli.startup import main as minitron

        minitron()
    finally:
        sys.settrace(None)
        if fatal < 0:
            file.write_text(json.dumps({"names": list(lines.names), "seen": lines.seen}))


if __name__ == "__main__":
    main()
