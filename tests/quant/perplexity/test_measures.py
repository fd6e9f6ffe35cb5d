"""The registry of measures: one field, read by JSON and by every table."""

from dataclasses import field, make_dataclass, replace

import numpy as np
import pytest

from minitron_cli.report.tables import main_table
from minitron_cli.views.perplexity import measure_table, table_cells
from minitron_quant.perplexity import measures
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.measures import Column, Row, columns, statistics

ROW = Row("a-Q4_0.gguf", "Q4_0", 1.5, 9.25, 50.0, 98.5, 0.125, 4, "CPU")
SCORES = TokenScores(np.linspace(1, 3, 200), np.linspace(0, 1, 200), np.ones(200, np.bool_))


def test_columns_have_the_published_order() -> None:
    headings = [column.heading for column in columns()]
    assert headings[:5] == ["Size (MB)", "PPL", "Size (%)", "Accuracy (%)", "PPL error rate"]
    assert headings[5:] == ["KLD", "KLD error", "KLD 99 %", "Same top (%)"]


def test_columns_only_of_what_some_row_has() -> None:
    alone = replace(ROW, size_pct=None, accuracy_pct=None)
    assert [column.key for column in columns([alone.document()])] == [
        "size_mib",
        "ppl",
        "ppl_error",
    ]
    assert "kld_mean" not in [column.key for column in columns([ROW.document()])]


def test_measure_table_fills_what_a_row_lacks_with_nothing() -> None:
    compared = replace(ROW, divergence=statistics([SCORES], [SCORES.nll]))
    headers, cells = measure_table([ROW, compared])
    assert headers[0] == "Model" and headers[-1] == "Same top (%)"
    assert cells[0] == ["a-Q4_0.gguf", "1.50", "9.2500", "50.00", "98.50", "0.12500", *[""] * 4]
    assert cells[1][6:] == ["0.500000", "0.020566", "0.9900", "100.00"]
    assert measure_table([ROW], levels=True)[1][0][0] == "Q4_0"


def test_a_new_measure_is_one_field_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"heading": "Tokens", "format": ".0f", "define": lambda tokens: tokens.count}
    extended = make_dataclass(
        "Divergence",
        [("tokens", float, field(metadata=how))],
        bases=(measures.Divergence,),
        frozen=True,
    )
    monkeypatch.setattr(measures, "Divergence", extended)
    row = replace(ROW, divergence=statistics([SCORES], [SCORES.nll]))
    assert row.document()["tokens"] == 200 and ROW.document()["tokens"] is None
    assert columns()[-1] == Column("tokens", "Tokens", ".0f")
    for headers, cells in (
        measure_table([row]),
        table_cells([row.document()], columns()),
        main_table([row]),
    ):
        assert headers[-1] == "Tokens" and cells[0][-1] == "200"
