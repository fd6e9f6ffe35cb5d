"""What is asked of the size dial: kept apart from what answers it, which takes long to load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_core.errors import Usage


@dataclass(frozen=True)
class DialOptions:
    """The options of the dial beside those that every quantization has."""

    size: str | None
    bpw: float | None
    max_kld: float | None
    like: str | None
    curve: bool
    sensitivity: Path | None
    types: str | None
    floors: tuple[str, ...]
    held_out: Path | None
    chunks: int | None
    no_verify: bool

    def asked(self, levels: Sequence[str]) -> bool:
        """Whether a size is asked for, not levels; Usage for both, or several, or neither."""
        wanted = (self.size, self.bpw, self.max_kld, self.like)
        count = sum(value is not None for value in wanted)
        if levels and (count or self.curve):
            raise Usage("give levels, or a size, but not both")
        if count > 1:
            raise Usage("--size, --bpw, --max-kld and --like exclude each other")
        if not (levels or count or self.curve):
            raise Usage("what is to be made? Give levels, or a size", "minitron quantize --help")
        return not levels
