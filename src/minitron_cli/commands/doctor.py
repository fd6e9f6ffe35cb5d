"""minitron doctor: versions, devices, and what is wrong with this installation."""

from pathlib import Path

import typer

from minitron_cli.options.parameters import ConsoleOptions

EXAMPLES = """minitron doctor
minitron doctor --json"""


def doctor(console: ConsoleOptions) -> None:
    """Show versions, devices, disk and environment, and what is wrong with them."""
    from minitron_cli.doctor import examine
    from minitron_cli.views.doctor import show_report

    out = console.output()
    report = examine(Path.cwd())
    show_report(out, report)
    if report["problems"]:
        raise typer.Exit(1)
