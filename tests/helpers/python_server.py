"""Programs in processes of their own that begin with what takes long to load.

One process loads it and forks for every program. It has not loaded huggingface_hub, which reads its
environment when it is loaded; so every program begins with an environment of its own.
"""

# first: numpy reads what it sets
import minitron_engine  # noqa: F401

# isort: split

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

LOADED = (
    *("numpy", "minitron_cli.main", "minitron_convert.convert"),
    *("httpx", "yaml", "fsspec", "filelock", "tqdm", "packaging.version"),
)


class Ended(NamedTuple):
    """What a program left."""

    returncode: int
    stdout: str
    stderr: str


class PythonServer:
    """The process that forks, as it is used by the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(self, words: tuple[object, ...], environment: Mapping[str, str], folder: Path) -> Ended:
        """Run Python with words that begin with -c or -m, in a folder, to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with TemporaryDirectory() as place:
            request = [list(map(str, words)), dict(environment), str(folder), place]
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return Ended(code, *((Path(place) / name).read_text() for name in ("out", "err")))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _serve() -> None:
    for name in LOADED:
        import_module(name)
    assert "huggingface_hub.constants" not in sys.modules
    # a program has stdin and stdout of its own, not those of another's requests and answers
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        words, environment, folder, place = json.loads(line)
        child = os.fork()
        if not child:
            _be_program(words, environment, folder, Path(place))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _be_program(
    words: list[str], environment: dict[str, str], folder: str, place: Path
) -> NoReturn:
    for number, path in enumerate((Path(os.devnull), place / "out", place / "err")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, program, *sys.argv[1:] = words
    code: object = 0
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as leave:
        code = leave.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
