"""Run every benchmark and write results/<stage>.md: machine, versions, table, commands.

Options of a stage's own script go to every stage that runs: name it with --stage.
"""

import json
import re
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import USAGE, NotGiven, Setup, minitron_path, parser_for, table_of

HERE = Path(__file__).resolve().parent
STAGES = ("convert", "imatrix", "quantize", "perplexity", "tasks", "generate", "bench")
CONVERTER_OPTIONS = ("--converter", "--converter-python")
BUSY = "Much other work ran beside it: CPU times are higher than alone, and wall times say little."
PARSER = parser_for(__doc__)
for option in CONVERTER_OPTIONS:
    PARSER.add_argument(option)
PARSER.add_argument("--stage", action="append", choices=STAGES, help="repeat for several")
PARSER.add_argument("--results", type=Path, default=HERE / "results")


def options_of(stage: str, arguments: Namespace) -> list[str]:
    """The options that a stage takes of those given."""
    names = ["--tools", "--minitron", "--model", "--runs", "--threads"]
    if stage == "convert":
        names += CONVERTER_OPTIONS
    values = {name: getattr(arguments, name[2:].replace("-", "_")) for name in names}
    return [word for name, value in values.items() if value for word in (name, str(value))]


def versions(arguments: Namespace) -> dict[str, str]:
    """What both sides say of themselves; NotGiven where llama.cpp's programs are not there."""
    theirs = [str(word) for word in Setup(arguments, HERE).tool("llama-imatrix", "--version")]
    ours = [str(minitron_path(arguments)), "--version"]
    output = subprocess.run(theirs, capture_output=True, text=True, check=True)
    found = re.search(r"version: (.+)", output.stdout + output.stderr)
    words = subprocess.run(ours, capture_output=True, text=True, check=True).stdout.split("\n")
    return {"minitron": words[0].strip(), "llama.cpp": found[1] if found else "unknown"}


def measured(stage: str, arguments: Namespace, more: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """The exit status of one benchmark, and what it wrote as JSON, empty where it did not."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "results.json"
        words = [sys.executable, str(HERE / f"{stage}.py"), *options_of(stage, arguments), *more]
        done = subprocess.run([*words, "--json", str(target)], stdout=subprocess.DEVNULL)
        return done.returncode, json.loads(target.read_text()) if target.exists() else {}


def page(stage: str, document: dict[str, Any], said: dict[str, str]) -> str:
    """One stage's results as Markdown."""
    facts = document["machine"] | said
    facts |= {"threads": document["threads"]}
    commands = [
        f"- {case['name']}: `{case['ours']['command']}` and `{case['theirs']['command']}`"
        for case in document["cases"]
    ]
    return "\n".join(
        [
            f"# {stage}",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            *(["", BUSY] if facts["load average"] > 1.5 * facts["cores"] else []),
            "",
            table_of(document["cases"]),
            "",
            *commands,
            "",
        ]
    )


def main() -> int:
    """Run the stages; the highest exit status among them, 2 where one had nothing to compare."""
    arguments, more = PARSER.parse_known_args()
    try:
        said = versions(arguments)
    except NotGiven as reason:
        print(f"run_all.py: {reason}", file=sys.stderr)
        return USAGE
    arguments.results.mkdir(parents=True, exist_ok=True)
    status = 0
    for stage in arguments.stage or STAGES:
        failed, document = measured(stage, arguments, more)
        status = max(status, failed)
        if document.get("cases"):
            text = page(stage, document, said)
            (arguments.results / f"{stage}.md").write_text(text, encoding="utf-8")
            print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
