"""The options of sampling, made from the engine's registry and named as llama.cpp's tools do."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.options.groups import Group, option_group
from minitron_engine.generation.sampling import SAMPLING_OPTIONS, random_seed
from minitron_engine.generation.sampling_options import SamplingOption

# what is beyond only guards llama.cpp's numbers and is not worth showing
_SHOWN_BOUNDS = 1e-3, 1e5


def _option(*names: str, default: str = "", **more: Any) -> Any:
    # the default is shown only: what is not given may come from the model's metadata
    shown: Any = default or True
    return typer.Option(*names, show_default=shown, rich_help_panel="Sampling", **more)


def _bound(number: float) -> float | None:
    least, most = _SHOWN_BOUNDS
    return number if number == 0 or least <= abs(number) <= most else None


def option_of(row: SamplingOption) -> Any:
    """The annotation that typer reads for a row."""
    flags = row.flags or (f"--{row.name.replace('_', '-')}",)
    if row.type is bool:
        return Annotated[bool, typer.Option(*flags, help=row.help, rich_help_panel="Sampling")]
    bounds: dict[str, Any] = {}
    if row.numeric:
        bounds = {"min": _bound(row.low), "max": _bound(row.high)}
    kind: Any = row.type if row.numeric else list[str] if row.many else str
    if row.text:
        kind = Path
    option = _option(
        *flags, default=row.shown_default, help=row.help, metavar=row.metavar, **bounds
    )
    return Annotated[kind | None, option]


def with_options(*rows: SamplingOption) -> Any:
    """Make a class a group of options: one for each row, and then those that it has itself."""

    def decorate(group: type[Group]) -> type[Group]:
        options = {row.name: option_of(row) for row in rows}
        for row in rows:
            setattr(group, row.name, False if row.type is bool else None)
        group.__annotations__ = options | group.__annotations__
        return option_group(group)

    return decorate


@with_options(*SAMPLING_OPTIONS)
class SamplingOptions:
    """What the command line says of sampling; None where it says nothing."""

    def given(self) -> dict[str, Any]:
        """The engine's settings as far as they were said; a seed is always among them."""
        said = {name: value for name, value in vars(self).items() if value not in (None, [], ())}
        for row in SAMPLING_OPTIONS:
            if row.parse is not None and row.name in said:
                said[row.name] = row.parse(said[row.name])
            elif row.text and row.name in said:
                said[row.name] = _read(said[row.name])
        said.setdefault("seed", random_seed())
        return said

    def given_for_many(self) -> dict[str, Any]:
        """As `given`, where each answer has a random seed of its own if none was said."""
        return {
            k: v for k, v in self.given().items() if k != "seed" or vars(self)["seed"] is not None
        }


def _read(path: Path) -> str:
    from minitron_quant.chunking import read_text

    return read_text(path)
