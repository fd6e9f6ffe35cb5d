"""--feedback: the covariance that a quantization takes, given or collected first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.inputs import open_checked
from minitron_cli.output import Output
from minitron_core.errors import Usage

if TYPE_CHECKING:
    from minitron_cli.options.dial import DialOptions
    from minitron_quant.gptq.held_out import Proved
    from minitron_quant.quantize.prepare import QuantizeSettings


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
    settings: "QuantizeSettings", options: FeedbackOptions, out: Output, plan_only: bool = False
) -> "QuantizeSettings":
    """The settings with the covariance that the options ask for; it is collected if need be.

    For a plan nothing is collected.
    """
    if not options.asked:
        return settings
    if options.covariance is not None:
        return replace(settings, covariance=options.covariance)
    if plan_only:
        out.note("the covariance is collected when files are made")
        return replace(settings, uncollected=options.texts)
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.covariance.collect import (
        BLOCK,
        FULL,
        CovarianceSettings,
        collect_covariance,
    )
    from minitron_quant.quantize.prepare import folder_of, model_name

    chunks = ChunkSettings(threads=settings.threads)
    high = options.effort == "high"
    collecting = CovarianceSettings(options.texts, chunks, FULL if high else BLOCK)
    name = f"{model_name(settings.source)}.covariance{'-full' if high else ''}.gguf"
    path = folder_of(settings) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.progress() as listener,
        open_checked(settings.source, "auto", chunks.context()) as model,
    ):
        collect_covariance(model, collecting, path, listener)
    return replace(settings, covariance=path)


def show_proved(out: Output, settings: "QuantizeSettings", options: "DialOptions") -> None:
    """Make levels with feedback, proved on --held-out text, and show what it gained."""
    from minitron_cli.quantizing.dialing import held_out_settings
    from minitron_cli.units import show_mib
    from minitron_quant.gptq.held_out import make_proved

    with out.progress() as listener:
        made = make_proved(settings, held_out_settings(settings, options), listener)
    if out.as_json:
        out.document({"levels": [_document(each) for each in made]})
        return
    rows = []
    for each in made:
        proof, result = each.proof, each.result
        low, high = (
            100 * end / proof.plain for end in (proof.difference.low, proof.difference.high)
        )
        rows.append(
            [
                result.level,
                show_mib(result.bytes / 2**20),
                f"{proof.plain:.5f}",
                f"{proof.feedback:.5f}",
                f"{proof.change_pct:+.1f} %",
                f"{low:+.1f} … {high:+.1f} %",
                str(result.path),
            ]
        )
        if not proof.better:
            out.note(f"{result.level}: feedback is no better on {proof.text}; the plain file stays")
    headers = ["Level", "MiB", "KLD, plain", "Feedback", "Change", "95 % interval", "File"]
    out.table(headers, rows)


def _document(made: "Proved") -> dict[str, Any]:
    proof, result = made.proof, made.result
    return {
        "level": result.level,
        "path": str(result.path),
        "bytes": result.bytes,
        "bpw": result.bits_per_weight,
        "sha256": result.sha256,
        "kept": "feedback" if proof.better else "plain",
        "text": proof.text,
        "chunks": proof.chunks,
        "plain_kld": proof.plain,
        "feedback_kld": proof.feedback,
        "change_pct": proof.change_pct,
        "difference": [proof.difference.mean, proof.difference.low, proof.difference.high],
    }
