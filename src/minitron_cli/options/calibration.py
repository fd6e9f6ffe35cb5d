"""The options of `quantize` about what is collected on a text before it encodes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minitron_cli.options.groups import option_group
from minitron_cli.options.quantize import LEVELS
from minitron_core.errors import Usage

if TYPE_CHECKING:
    from minitron.checkpoint_levels import Calibration
    from minitron_quant.quantize.prepare import QuantizeSettings

_gptq = partial(typer.Option, rich_help_panel="GPTQ")
_levels = partial(typer.Option, rich_help_panel=LEVELS)


@option_group
class CalibrationOptions:
    """A text to calibrate on, and codes chosen against the covariance of the inputs."""

    gptq: Annotated[
        Literal["auto", "two-sided", "sequential", "independent"] | None,
        _gptq(
            "--gptq",
            help="Choose codes so that later columns compensate for earlier errors. sequential: "
            "each matrix repairs what the matrices before it left; two-sided: rows compensate for "
            "each other besides, by gradients that take transformers; independent: each matrix by "
            "itself; auto, or no value: sequential where the model allows it.",
        ),
    ] = None
    text: Annotated[
        list[Path] | None,
        _levels(
            "-f",
            "--text",
            metavar="TEXT",
            help="Calibrate on this text first: collect the importance matrix, or what --gptq "
            "needs. May be repeated.",
        ),
    ] = None
    calibration_chunks: Annotated[
        int | None, _levels(min=1, metavar="N", help="Calibrate on at most this many chunks.")
    ] = None
    covariance: Annotated[
        Path | None,
        _gptq(metavar="FILE", help="A covariance that --gptq independent collected earlier."),
    ] = None
    effort: Annotated[
        Literal["normal", "high"] | None,
        _gptq(help="high: all columns compensate for each other, instead of blocks of 1024."),
    ] = None

    def calibration(self, settings: QuantizeSettings) -> Calibration | None:
        """What collects an importance matrix; None without a text, or where it is --gptq's."""
        if self.gptq or not self.text:
            return None
        from minitron.checkpoint_levels import Calibration
        from minitron_quant.chunking import ChunkSettings

        chunks = ChunkSettings(limit=self.calibration_chunks, threads=settings.threads)
        return Calibration(tuple(self.text), chunks, settings.gpu_layers, settings.placement)

    def check(self, imatrix: Path | None) -> None:
        """Usage: options that do not go together."""
        if self.calibration_chunks and not self.text:
            raise Usage("--calibration-chunks needs a text", "add -f TEXT")
        if not self.gptq:
            if self.covariance or self.effort:
                raise Usage("--covariance and --effort need --gptq", "add --gptq")
            if self.text and imatrix:
                raise Usage("-f collects an importance matrix, and --imatrix gives one", "drop one")
        elif bool(self.text) == bool(self.covariance):
            raise Usage(
                "--gptq needs either a text or a covariance",
                "--text TEXT collects one; --covariance FILE uses one that was collected",
            )
        elif self.covariance and self.effort:
            raise Usage("--effort applies to collecting a covariance, and one is given")
        elif self.covariance and self.gptq in ("sequential", "two-sided"):
            raise Usage(f"--gptq {self.gptq} takes a text", "--gptq independent takes a covariance")
