"""--feedback: the covariance that a quantization takes, given or collected first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli.models import open_checked
from minitron_cli.output import Output
from minitron_engine.errors import Usage

if TYPE_CHECKING:
    from minitron_quant.quantize.job import QuantizeSettings


@dataclass(frozen=True)
class FeedbackOptions:
    """What the command line says: --feedback, -f, --covariance and --effort."""

    asked: bool
    texts: tuple[Path, ...]
    covariance: Path | None
    effort: str | None

    def check(self) -> None:
        """Usage for options that do not go together."""
        if not self.asked:
            if self.texts or self.covariance or self.effort:
                raise Usage("-f, --covariance and --effort are for --feedback", "add --feedback")
        elif bool(self.texts) == bool(self.covariance):
            raise Usage(
                "--feedback needs either texts or a covariance",
                "-f TEXT collects one; --covariance FILE uses one that was collected",
            )
        elif self.covariance and self.effort:
            raise Usage("--effort is for collecting", "the covariance given is what it is")


def with_covariance(
    settings: "QuantizeSettings", options: FeedbackOptions, out: Output
) -> "QuantizeSettings":
    """The settings with the covariance that the options ask for; it is collected if need be."""
    if not options.asked:
        return settings
    if options.covariance is not None:
        return replace(settings, covariance=options.covariance)
    from minitron_quant.chunks import ChunkSettings
    from minitron_quant.covariance.collect import (
        BLOCK,
        FULL,
        CovarianceSettings,
        collect_covariance,
    )
    from minitron_quant.quantize.job import folder_of, model_name

    chunks = ChunkSettings(threads=settings.threads)
    high = options.effort == "high"
    collecting = CovarianceSettings(options.texts, chunks, FULL if high else BLOCK)
    name = f"{model_name(settings.source)}.covariance{'-full' if high else ''}.gguf"
    path = folder_of(settings) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.progress() as listener,
        open_checked(settings.source, "auto", chunks.context().n_ctx) as model,
    ):
        collect_covariance(model, collecting, path, listener)
    return replace(settings, covariance=path)
