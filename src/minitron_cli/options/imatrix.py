"""The options of `imatrix` about what is collected, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minitron_cli.options.groups import option_group
from minitron_cli.options.parameters import UBatch

if TYPE_CHECKING:
    from pathlib import Path

    from minitron_quant.imatrix.collect import CollectSettings


@option_group
class CollectOptions:
    """Chunks of a text, and which sums of a model's inputs a file has."""

    chunks: Annotated[int | None, typer.Option(min=1, help="At most this many chunks in all.")] = (
        None
    )
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=16, help="Tokens of a chunk.")] = 512
    batch: Annotated[int, typer.Option("--batch", "-b", min=16, help="Tokens of a decode.")] = 2048
    ubatch: UBatch = 512
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Collect for output.weight too.")
    ] = False
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read special tokens in the text as tokens.")
    ] = False
    file_format: Annotated[
        Literal["gguf", "dat"], typer.Option("--format", help="llama.cpp's new or old format.")
    ] = "gguf"
    sums: Annotated[
        Literal["float32", "float64"],
        typer.Option(
            "--sums",
            help="float32 adds as llama-imatrix does and drifts on long texts, by up to 1.5e-4 of "
            "a sum on the bundled model; float64 does not.",
        ),
    ] = "float32"
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Write llama-imatrix's file to the byte: without the means of the inputs and the "
            "hashes of model and texts.",
        ),
    ] = False
    ppl: Annotated[
        bool,
        typer.Option(
            "--ppl",
            help="Also measure the text's perplexity, as llama-perplexity does; slower.",
        ),
    ] = False

    def settings(self, texts: tuple[Path, ...], threads: int | None) -> CollectSettings:
        """What these options say of texts."""
        from minitron_quant.chunking import ChunkSettings
        from minitron_quant.imatrix.collect import CollectSettings

        chunks = ChunkSettings(
            self.ctx,
            self.batch,
            self.chunks,
            threads,
            self.parse_special,
            n_ubatch=self.ubatch,
        )
        return CollectSettings(
            texts,
            chunks,
            self.process_output,
            self.plain or self.file_format == "dat",
            self.sums,
            self.ppl,
        )
