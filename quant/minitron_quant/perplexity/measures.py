"""The measures of a file: each is one field with its definition, its heading and its format.

The field's name is its key in JSON. What has a heading is a column of the tables; terminal, csv,
reports and model cards all read `columns()`. Divergence from a reference is defined as in
kl_divergence() of tools/perplexity (llama.cpp 0c1e57098).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minitron_quant.perplexity.perplexity import summarize

if TYPE_CHECKING:
    from minitron_quant.perplexity.divergence import TokenScores

_MIN_TOKENS = 100  # llama-perplexity prints no statistics of fewer

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """A measure in a table. format: a format specification, or mib for a size in MiB."""

    key: str
    heading: str
    format: str


class Sample:
    """Values of all scored tokens, with their mean and its standard error."""

    def __init__(self, values: Array) -> None:
        self.values = values

    @cached_property
    def mean(self) -> float:
        """The mean."""
        return float(self.values.mean())

    @cached_property
    def error(self) -> float:
        """sqrt((mean of squares − mean²) / (n − 1))."""
        variance = float((self.values * self.values).mean()) - self.mean * self.mean
        return math.sqrt(max(variance, 0.0) / (len(self.values) - 1))

    def percentile(self, percent: float) -> float:
        """Linear between the nearest values."""
        return float(np.percentile(self.values, percent))


class ComparedTokens:
    """All scored tokens of a model beside those of its reference.

    nll: −ln p of the true token; base: the reference's. delta_p: the change of its probability.
    """

    def __init__(self, nll: Array, base: Array, kld: Array, same_top: NDArray[np.bool_]) -> None:
        self.nll, self.base, self.kld = Sample(nll), Sample(base), Sample(kld)
        self.delta_p = Sample(np.exp(-nll) - np.exp(-base))
        self.squared_delta_p = Sample(self.delta_p.values**2)
        self.same_top = float(same_top.mean())

    @property
    def count(self) -> int:
        """How many tokens were scored."""
        return len(self.nll.values)

    @cached_property
    def covariance(self) -> float:
        """Of the means of nll and base."""
        product = float((self.nll.values * self.base.values).mean())
        return (product - self.nll.mean * self.base.mean) / (self.count - 1)

    @cached_property
    def ppl(self) -> tuple[float, float]:
        """The perplexity and its standard error."""
        return summarize(self.nll.values)

    @property
    def ppl_ratio(self) -> float:
        """PPL / PPL of the reference."""
        return math.exp(self.nll.mean - self.base.mean)

    @property
    def ppl_ratio_error(self) -> float:
        """The standard error of the ratio."""
        variance = self.nll.error**2 + self.base.error**2 - 2 * self.covariance
        return self.ppl_ratio * math.sqrt(max(variance, 0.0))

    @property
    def rms_delta_p(self) -> float:
        """The root of the mean square of delta_p."""
        return math.sqrt(self.squared_delta_p.mean)

    @property
    def rms_delta_p_error_pct(self) -> float:
        """The standard error of that root, in percent."""
        rms = self.rms_delta_p
        return 100 * 0.5 / rms * self.squared_delta_p.error if rms else 0.0

    @property
    def same_top_error(self) -> float:
        """The standard error of the share same_top."""
        return math.sqrt(self.same_top * (1 - self.same_top) / (self.count - 1))


def _measure(
    heading: str = "", form: str = "", define: Callable[[ComparedTokens], float] | None = None
) -> dict[str, Any]:
    """The metadata of a measure's field; one without a heading stands in JSON only."""
    return {"heading": heading, "format": form, "define": define}


@dataclass(frozen=True)
class Divergence:
    """Divergence from a reference over all scored tokens; pct is percent, KLD is in nats."""

    ppl: float = field(metadata=_measure(define=lambda t: t.ppl[0]))
    ppl_error: float = field(metadata=_measure(define=lambda t: t.ppl[1]))
    ppl_ratio: float = field(metadata=_measure(define=lambda t: t.ppl_ratio))
    ppl_ratio_error: float = field(metadata=_measure(define=lambda t: t.ppl_ratio_error))
    ln_ppl_correlation_pct: float = field(
        metadata=_measure(define=lambda t: 100 * t.covariance / (t.nll.error * t.base.error))
    )
    kld_mean: float = field(metadata=_measure("KLD", ".6f", lambda t: t.kld.mean))
    kld_error: float = field(metadata=_measure("KLD error", ".6f", lambda t: t.kld.error))
    kld_max: float = field(metadata=_measure(define=lambda t: float(t.kld.values.max())))
    kld_p999: float = field(metadata=_measure(define=lambda t: t.kld.percentile(99.9)))
    kld_p99: float = field(metadata=_measure("KLD 99 %", ".4f", lambda t: t.kld.percentile(99)))
    kld_p95: float = field(metadata=_measure(define=lambda t: t.kld.percentile(95)))
    kld_p90: float = field(metadata=_measure(define=lambda t: t.kld.percentile(90)))
    kld_median: float = field(metadata=_measure(define=lambda t: t.kld.percentile(50)))
    kld_p10: float = field(metadata=_measure(define=lambda t: t.kld.percentile(10)))
    kld_p05: float = field(metadata=_measure(define=lambda t: t.kld.percentile(5)))
    kld_p01: float = field(metadata=_measure(define=lambda t: t.kld.percentile(1)))
    kld_min: float = field(metadata=_measure(define=lambda t: float(t.kld.values.min())))
    delta_p_mean_pct: float = field(metadata=_measure(define=lambda t: 100 * t.delta_p.mean))
    delta_p_error_pct: float = field(metadata=_measure(define=lambda t: 100 * t.delta_p.error))
    rms_delta_p_pct: float = field(metadata=_measure(define=lambda t: 100 * t.rms_delta_p))
    rms_delta_p_error_pct: float = field(
        metadata=_measure(define=lambda t: t.rms_delta_p_error_pct)
    )
    same_top_pct: float = field(
        metadata=_measure("Same top (%)", ".2f", lambda t: 100 * t.same_top)
    )
    same_top_error: float = field(metadata=_measure(define=lambda t: 100 * t.same_top_error))


@dataclass(frozen=True)
class Row:
    """The measures of one file.

    size_pct, accuracy_pct (100 · PPL of the reference / PPL) and divergence are None without a
    reference. noise: for the reference, its divergence from itself in batches of another size;
    smaller differences mean nothing. dominated_by: a model that is smaller and has a lower
    perplexity. chunk_nll, chunk_kld: the means of each chunk, for paired differences.
    """

    model: str
    level: str
    size_mib: float = field(metadata=_measure("Size (MB)", "mib"))
    ppl: float = field(metadata=_measure("PPL", ".4f"))
    size_pct: float | None = field(metadata=_measure("Size (%)", ".2f"))
    accuracy_pct: float | None = field(metadata=_measure("Accuracy (%)", ".2f"))
    ppl_error: float = field(metadata=_measure("PPL error rate", ".5f"))
    chunks: int
    device: str
    divergence: Divergence | None = None
    noise: Divergence | None = None
    dominated_by: str | None = None
    chunk_nll: tuple[float, ...] = field(default=(), compare=False, repr=False)
    chunk_kld: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def document(self) -> dict[str, Any]:
        """The row with its keys in JSON, those of the divergence among them."""
        document = asdict(self)
        for key in ("chunk_nll", "chunk_kld", "noise"):
            del document[key]
        divergence = document.pop("divergence")
        divergence = divergence or dict.fromkeys(each.name for each in fields(Divergence))
        # the row's own perplexity is the divergence's
        return document | {k: v for k, v in divergence.items() if k not in document}


def statistics(chunks: Sequence["TokenScores"], reference: Sequence[Array]) -> Divergence | None:
    """Everything that llama-perplexity prints of a divergence; None for fewer than 100 t.

    reference: −ln p of the same tokens by the reference, chunk by chunk.
    """
    nll, kld, same_top = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("nll", "kld", "same_top")
    )
    tokens = ComparedTokens(nll, np.concatenate(reference), kld, same_top)
    if tokens.count < _MIN_TOKENS:
        return None
    return Divergence(**{each.name: each.metadata["define"](tokens) for each in fields(Divergence)})


def columns(rows: Sequence[Mapping[str, Any]] | None = None) -> list[Column]:
    """The columns of a table, in its order; with rows (documents) only those that have a value."""

    def found() -> Iterator[Column]:
        for each in (*fields(Row), *fields(Divergence)):
            if each.metadata.get("heading"):
                yield Column(each.name, each.metadata["heading"], each.metadata["format"])

    return [
        column
        for column in found()
        if rows is None or any(row.get(column.key) is not None for row in rows)
    ]
