"""Run a command, and cut a file short in place when a function of ours is called.

    python cut.py FILE FUNCTION TIMES WORD...

FUNCTION: its qualified name, as in Context.decode; TIMES: at which of its calls, in any thread. The
page that the file begins with stays. With 0 nothing is cut, and FILE gets the calls of each
function, as JSON.
"""

import json
import os
import sys
import threading
from collections import Counter
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType

LEFT = 4096


class Calls:
    """Counts the calls of our functions, and cuts at one of them."""

    def __init__(self, file: Path, function: str, times: int) -> None:
        self.counts: Counter[str] = Counter()
        self._file, self._moment = file, (function, times)

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        # bodies of classes and modules are not calls
        ours = code.co_flags & CO_OPTIMIZED and "/minitron_" in code.co_filename
        if event == "call" and ours:
            self.counts[code.co_qualname] += 1
            if (code.co_qualname, self.counts[code.co_qualname]) == self._moment:
                os.truncate(self._file, LEFT)


def main() -> None:
    file, times = Path(sys.argv[1]), int(sys.argv[3])
    calls = Calls(file, sys.argv[2], times)
    sys.argv[:] = ["minitron", *sys.argv[4:]]
    threading.setprofile(calls)
    sys.setprofile(calls)
    try:
        from minitron_cli.startup import main as minitron

        minitron()
    finally:
        sys.setprofile(None)
        if times == 0:
            file.write_text(json.dumps(calls.counts))


if __name__ == "__main__":
    main()
