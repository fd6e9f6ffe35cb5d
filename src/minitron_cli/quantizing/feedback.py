"""--feedback: the covariance that a quantization takes, given or collected first."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.inputs import open_checked
from minitron_cli.output import Output
from minitron_core.errors import Usage

if TYPE_CHECKING:
    from minitron_cli.options.dial import DialOptions
    from minitron_quant.gptq.encoder import GptqEncoder
    from minitron_quant.gptq.estimate import PlainCodes
    from minitron_quant.gptq.held_out import VerifiedLevel
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


def planned_refiner(settings: "QuantizeSettings", options: FeedbackOptions) -> "PlainCodes":
    """What --gptq with these texts will bring to the files; nothing is collected."""
    from minitron_quant.gptq.estimate import planned_gptq
    from minitron_quant.model_files import open_model_files

    texts = [text.name for text in options.texts]
    return planned_gptq(texts, open_model_files(settings.source))


def covariance_of(
    settings: "QuantizeSettings", options: FeedbackOptions, out: Output
) -> Path | None:
    """The covariance that the options ask for; it is collected if need be."""
    if not options.asked or options.covariance is not None:
        return options.covariance
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
    return path


def show_proved(
    out: Output, settings: "QuantizeSettings", gptq: "GptqEncoder", options: "DialOptions"
) -> None:
    """Make levels with feedback, proved on --held-out text, and show what it gained."""
    from minitron_cli.quantizing.dialing import held_out_settings
    from minitron_cli.units import show_mib
    from minitron_quant.gptq.held_out import quantize_verified

    with out.progress() as listener:
        made = quantize_verified(settings, gptq, held_out_settings(settings, options), listener)
    if out.as_json:
        out.document({"levels": [_document(each) for each in made]})
        return
    rows = []
    for each in made:
        proof, result = each.comparison, each.result
        low, high = proof.interval_pct
        rows.append(
            [
                result.level,
                show_mib(result.bytes / 2**20),
                f"{proof.baseline_kld:.5f}",
                f"{proof.kld:.5f}",
                f"{proof.change_pct:+.1f} %",
                f"{low:+.1f} … {high:+.1f} %",
                str(result.path),
            ]
        )
        if not proof.better:
            out.note(f"{result.level}: feedback is no better on {proof.text}; the plain file stays")
    headers = ["Level", "MiB", "KLD, plain", "Feedback", "Change", "95 % interval", "File"]
    out.table(headers, rows)


def _document(made: "VerifiedLevel") -> dict[str, Any]:
    proof, result = made.comparison, made.result
    return {
        "level": result.level,
        "path": str(result.path),
        "bytes": result.bytes,
        "bpw": result.bits_per_weight,
        "sha256": result.sha256,
        "kept": "feedback" if proof.better else "plain",
        "text": proof.text,
        "chunks": proof.chunks,
        "plain_kld": proof.baseline_kld,
        "feedback_kld": proof.kld,
        "change_pct": proof.change_pct,
        "difference": [proof.difference.mean, proof.difference.low, proof.difference.high],
    }
