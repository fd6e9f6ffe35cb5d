"""Where the `minitron` command begins: an interruption is quiet even while modules are loaded."""

import os
import sys


def main() -> None:
    """Run the command line and leave with an exit code of the contract."""
    try:
        from minitron_cli.main import main as run
        from minitron_engine.interrupts import end_cleanly
    except KeyboardInterrupt:
        sys.exit(130)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: then nobody reads
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
    end_cleanly()
    run()
