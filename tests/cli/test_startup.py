"""The start of a command: what it loads, and when Python looks for garbage."""

import json
import subprocess
import sys
from pathlib import Path

# a process of its own: what is loaded is what this command needed
PROGRAM = """
import gc, json, sys
from minitron_cli.startup import main
try:
    main()
finally:
    print(json.dumps({"collects": gc.isenabled(), "modules": list(sys.modules)}), file=sys.stderr)
"""


def test_main_collects_garbage_again_and_loads_little_for_a_token(nano_llama: Path) -> None:
    words = ("generate", nano_llama, "Once", "-n", "1", "--temp", "0", "--threads", "1", "-q")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(done.stderr)
    assert done.stdout.strip() and seen["collects"]
    assert not {"numpy", "jinja2", "rich", "huggingface_hub"} & {*seen["modules"]}
