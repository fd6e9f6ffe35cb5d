"""The entry point of `minitron`: Ctrl-C is quiet even while modules are loaded.

Python searches for garbage among what was just loaded, and once more at its end; for a short
command that is a seventh of the processor time. So it begins when the command does (main.py).
"""

import gc
import os
import sys
from contextlib import suppress

try:
    import resource
except ImportError:  # not on Windows, which has no such limit
    resource = None  # type: ignore[assignment]

_FILES = 1 << 14
_OUT_OF_RESOURCES = 6


def main() -> None:
    """Run the command line and leave with an exit code of the contract."""
    gc.disable()
    try:
        _begin()
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:  # too little even to load what explains errors
        sys.stderr.write("error: not enough memory to start\n")
        _leave_at_once()
    except SystemExit as leave:
        if leave.code == _OUT_OF_RESOURCES:
            _leave_at_once()
        raise
    finally:
        gc.freeze()


def _leave_at_once() -> None:
    """Leave for a lack of memory without the C library's own end, which may wait for ever.

    A thread that found no memory while a library was loaded can have left the loader locked, and
    the end of a process asks the loader.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(_OUT_OF_RESOURCES)


def _begin() -> None:
    from minitron_cli.main import main as run
    from minitron_engine.process.interrupts import end_cleanly

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: then nobody reads
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
    _allow_many_files()
    end_cleanly()
    run()


def _allow_many_files() -> None:
    """Raise the limit of open files: all levels of a model in shards are many at once."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
