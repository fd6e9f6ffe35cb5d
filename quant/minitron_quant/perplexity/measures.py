"""The measures of a file: each is one field with its definition, its heading and its format.

The field's name is its key in JSON. What has a heading is a column of the tables; terminal, csv,
reports and model cards all read `columns()`. Divergence from a reference is defined as in
kl_divergence() of tools/perplexity (llama.cpp 0c1e57098).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
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
    """Values of all scored tokens, their mean, and its standard error.

    error: sqrt((mean of squares − mean²) / (n − 1)).
    """

    def __init__(self, values: Array) -> None:
        self.values = values
        self.mean = float(values.mean())
        variance = float((values * values).mean()) - self.mean * self.mean
        self.error = math.sqrt(max(variance, 0.0) / (len(values) - 1))

    def percentile(self, percent: float) -> float:
        """Interpolated between the nearest values."""
        return float(np.percentile(self.values, percent))


class ComparedTokens:
    """All scored tokens of a model beside those of its reference, 100 or more.

    nll: −ln p of the true token; base: the reference's. delta_p: the change of its probability.
    same_top: the share of tokens for which both find the same one likeliest. covariance: of the
    means of nll and base. ppl_ratio: PPL / PPL of the reference.
    """

    def __init__(self, nll: Array, base: Array, kld: Array, same_top: NDArray[np.bool_]) -> None:
        self.count = len(nll)
        self.nll, self.base, self.kld = Sample(nll), Sample(base), Sample(kld)
        self.delta_p = Sample(np.exp(-nll) - np.exp(-base))
        self.squared_delta_p = Sample(self.delta_p.values**2)
        self.rms_delta_p = rms = math.sqrt(self.squared_delta_p.mean)
        self.rms_error_pct = 100 * 0.5 / rms * self.squared_delta_p.error if rms else 0.0
        self.same_top = share = float(same_top.mean())
        self.same_top_error = math.sqrt(share * (1 - share) / (self.count - 1))
        self.ppl, self.ppl_error = summarize(nll)
        product = float((nll * base).mean())
        self.covariance = (product - self.nll.mean * self.base.mean) / (self.count - 1)
        self.ppl_ratio = math.exp(self.nll.mean - self.base.mean)
        variance = self.nll.error**2 + self.base.error**2 - 2 * self.covariance
        self.ppl_ratio_error = self.ppl_ratio * math.sqrt(max(variance, 0.0))


def definition(
    heading: str = "", form: str = "", define: Callable[[ComparedTokens], float] | None = None
) -> dict[str, Any]:
    """The metadata of a measure's field; one without a heading stands in JSON only.

    form: see Column. define: how a measure of divergence is computed.
    """
    return {"heading": heading, "format": form, "define": define}


@dataclass(frozen=True)
class Divergence:
    """Divergence from a reference over all scored tokens; pct is percent, KLD is in nats."""

    ppl: float = field(metadata=definition(define=lambda t: t.ppl))
    ppl_error: float = field(metadata=definition(define=lambda t: t.ppl_error))
    ppl_ratio: float = field(metadata=definition(define=lambda t: t.ppl_ratio))
    ppl_ratio_error: float = field(metadata=definition(define=lambda t: t.ppl_ratio_error))
    ln_ppl_correlation_pct: float = field(
        metadata=definition(define=lambda t: 100 * t.covariance / (t.nll.error * t.base.error))
    )
    kld_mean: float = field(metadata=definition("KLD", ".6f", lambda t: t.kld.mean))
    kld_error: float = field(metadata=definition("KLD error", ".6f", lambda t: t.kld.error))
    kld_max: float = field(metadata=definition(define=lambda t: float(t.kld.values.max())))
    kld_p999: float = field(metadata=definition(define=lambda t: t.kld.percentile(99.9)))
    kld_p99: float = field(metadata=definition("KLD 99 %", ".4f", lambda t: t.kld.percentile(99)))
    kld_p95: float = field(metadata=definition(define=lambda t: t.kld.percentile(95)))
    kld_p90: float = field(metadata=definition(define=lambda t: t.kld.percentile(90)))
    kld_median: float = field(metadata=definition(define=lambda t: t.kld.percentile(50)))
    kld_p10: float = field(metadata=definition(define=lambda t: t.kld.percentile(10)))
    kld_p05: float = field(metadata=definition(define=lambda t: t.kld.percentile(5)))
    kld_p01: float = field(metadata=definition(define=lambda t: t.kld.percentile(1)))
    kld_min: float = field(metadata=definition(define=lambda t: float(t.kld.values.min())))
    delta_p_mean_pct: float = field(metadata=definition(define=lambda t: 100 * t.delta_p.mean))
    delta_p_error_pct: float = field(metadata=definition(define=lambda t: 100 * t.delta_p.error))
    rms_delta_p_pct: float = field(metadata=definition(define=lambda t: 100 * t.rms_delta_p))
    rms_delta_p_error_pct: float = field(metadata=definition(define=lambda t: t.rms_error_pct))
    same_top_pct: float = field(
        metadata=definition("Same top (%)", ".2f", lambda t: 100 * t.same_top)
    )
    same_top_error: float = field(metadata=definition(define=lambda t: 100 * t.same_top_error))


@dataclass(frozen=True)
class Row:
    """The measures of one file.

    size_pct, accuracy_pct (100 · PPL of the reference / PPL) and divergence are None without a
    reference. noise: for the reference, its divergence from itself in batches of another size;
    smaller differences mean nothing. dominated_by: a model of at most its size, better beyond
    chance. chunk_nll, chunk_kld: the means of each chunk, for paired differences.
    """

    model: str
    level: str
    size_mib: float = field(metadata=definition("Size (MB)", "mib"))
    ppl: float = field(metadata=definition("PPL", ".4f"))
    size_pct: float | None = field(metadata=definition("Size (%)", ".2f"))
    accuracy_pct: float | None = field(metadata=definition("Accuracy (%)", ".2f"))
    ppl_error: float = field(metadata=definition("PPL error rate", ".5f"))
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
    if len(nll) < _MIN_TOKENS:
        return None
    tokens = ComparedTokens(nll, np.concatenate(reference), kld, same_top)
    return Divergence(**{each.name: each.metadata["define"](tokens) for each in fields(Divergence)})


def columns(rows: Sequence[Mapping[str, Any]] | None = None) -> list[Column]:
    """The columns of a table of rows, in its order; see columns_of."""
    return columns_of((Row, Divergence), rows)


def columns_of(
    classes: Iterable[type[Any]], rows: Sequence[Mapping[str, Any]] | None = None
) -> list[Column]:
    """The measures of dataclasses that have a heading; with rows only those that have a value.

    rows: as documents, by the fields' names.
    """
    found = [
        Column(each.name, each.metadata["heading"], each.metadata["format"])
        for kind in classes
        for each in fields(kind)
        if each.metadata.get("heading")
    ]
    if rows is None:
        return found
    return [each for each in found if any(row.get(each.key) is not None for row in rows)]
