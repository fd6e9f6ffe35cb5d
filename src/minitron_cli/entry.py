"""Where the `minitron` command begins: an interruption is quiet even while modules are loaded."""

import sys


def main() -> None:
    """Run the command line and leave with an exit code of the contract."""
    try:
        from minitron_cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
