"""What `imatrix` says before and after its work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.output import Listener, Output
from minitron_core.errors import MinitronError, Usage
from minitron_engine.llama.model import Model
from minitron_quant.imatrix.collect import Collected
from minitron_quant.imatrix.state import saved_chunks, state_path
from minitron_quant.imatrix.statistics import unreached_experts
from minitron_quant.imatrix.synthetic_text import SelfSettings, write_self_text

_SHOWN = 8


def refuse_unfinished(path: Path, decided: bool) -> None:
    """Stop before an unfinished run is thrown away unasked."""
    chunks = None if decided else saved_chunks(state_path(path))
    if chunks is not None:
        raise MinitronError(
            f"an earlier run for {path} was stopped after {chunks} chunks",
            "--resume goes on with it; --force starts anew",
        )


@dataclass(frozen=True)
class SelfText:
    """`tokens` of text that the model writes itself, kept beside the matrix."""

    tokens: int
    output: Path
    resume: bool
    force: bool

    def __post_init__(self) -> None:
        if self.path.exists() and not (self.resume or self.force):
            raise MinitronError(
                f"{self.path} exists", f"-f {self.path.name} uses it; --force writes it anew"
            )

    @property
    def path(self) -> Path:
        """Where the text is kept."""
        return self.output.with_name(f"{self.output.name}.txt")

    def write(self, model: Model, settings: SelfSettings, listener: Listener) -> None:
        """Sample and keep it; with --resume a text that is there is used as it is."""
        if not (self.resume and self.path.exists()):
            write_self_text(model, settings, self.path, listener)


def calibration_texts(texts: Sequence[Path], own: SelfText | None) -> tuple[Path, ...]:
    """All texts in the order of use; Usage where there is none."""
    if own is not None:
        return (*texts, own.path)
    if not texts:
        raise Usage("there is no text to calibrate with", "give -f TEXT, or --self 50000")
    return tuple(texts)


def describe(path: Path, collected: Collected, device: str, out: Output) -> None:
    """The result of a collection, and experts that the text leaves without data."""
    matrix = collected.matrix
    facts = f"{len(matrix.entries)} entries, {matrix.chunk_count} chunks"
    ppl, error = collected.perplexity or (None, None)
    if ppl is not None:
        facts += f", perplexity {ppl:.4f} ± {error:.5f}"
    unreached = unreached_experts(matrix)
    document = {
        "path": str(path),
        "entries": len(matrix.entries),
        "chunks": matrix.chunk_count,
        "ctx": matrix.chunk_size,
        "datasets": matrix.datasets,
        "device": device,
        "resumed_after": collected.resumed,
        "ppl": ppl,
        "ppl_error": error,
        "unreached_experts": unreached,
    }
    for line in coverage_lines(unreached):
        out.note(line)
    out.result(document, f"wrote {path} ({facts})")


def coverage_lines(unreached: dict[str, list[int]]) -> list[str]:
    """One line per layer and set of experts that no token reached."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, experts in unreached.items():
        layer, _, weight = name.removesuffix(".weight").rpartition(".")
        groups.setdefault((layer, tuple(experts)), []).append(weight)
    lines = []
    for (layer, missing), weights in groups.items():
        shown = ", ".join(map(str, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        plural = "experts" if len(missing) > 1 else "expert"
        lines.append(
            f"{layer}: no token reached {plural} {shown}{more} of {', '.join(weights)}; "
            "they count as ones"
        )
    return lines
