"""The groups of options of `quantize`; each is a panel of its help."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitron_cli.options.groups import option_group
from minitron_cli.units import parse_size
from minitron_core.errors import NotFound, Unsupported, Usage

if TYPE_CHECKING:
    from minitron_quant.mixed_precision.build_mix import MixSettings, MixTarget
    from minitron_quant.mixed_precision.size_solver import Restrictions
    from minitron_quant.perplexity.settings import MeasureSettings
    from minitron_quant.quantize.prepare import QuantizeSettings

LEVELS = "Levels"
_mix = partial(typer.Option, rich_help_panel="A mix for a size")
_tensors = partial(typer.Option, rich_help_panel="Tensors")
_output = partial(typer.Option, rich_help_panel="Output")
_levels = partial(typer.Option, rich_help_panel=LEVELS)


@option_group
class LevelOptions:
    """What levels are made with."""

    imatrix: Annotated[
        Path | None, _levels(metavar="FILE", help="Importance matrix, as imatrix writes it.")
    ] = None
    include_weights: Annotated[
        list[str] | None,
        _levels(metavar="PART", help="Use it only for tensors with this in their name."),
    ] = None
    exclude_weights: Annotated[
        list[str] | None,
        _levels(metavar="PART", help="Use it for all but tensors with this in their name."),
    ] = None
    allow_requantize: Annotated[
        bool, _levels("--allow-requantize", help="Accept a model that is already quantized.")
    ] = False


@option_group
class MixOptions:
    """The size, or the divergence, for which the types of all tensors are solved."""

    size: Annotated[
        str | None, _mix(metavar="1.5G", help="The best mix of types in this many bytes.")
    ] = None
    bpw: Annotated[
        float | None, _mix(min=0, help="The best mix with this many bits per weight.")
    ] = None
    max_kld: Annotated[
        float | None, _mix(min=0, help="The smallest mix with at most this KL divergence.")
    ] = None
    like: Annotated[
        str | None, _mix(metavar="LEVEL", help="The best mix as large as this level.")
    ] = None
    curve: Annotated[bool, _mix("--curve", help="Only show size against predicted divergence.")] = (
        False
    )
    sensitivity: Annotated[
        Path | None,
        _mix(metavar="FILE", help="As sensitivity writes it; by default the one beside MODEL."),
    ] = None
    types: Annotated[
        str | None, _mix(metavar="T,…", help="Types to mix, or to leave out: =-iq1_s,-iq1_m.")
    ] = None
    floor: Annotated[
        list[str] | None,
        _mix(metavar="PATTERN=TYPE", help="At least as many bits as TYPE for these tensors."),
    ] = None
    held_out: Annotated[
        Path | None,
        _mix(
            metavar="TEXT",
            help="Text to verify the mix on, or with --gptq its gain; not the calibration text.",
        ),
    ] = None
    chunks: Annotated[int | None, _mix(min=1, help="Verify on at most this many chunks of it.")] = (
        None
    )
    no_verify: Annotated[bool, _mix("--no-verify", help="Do not measure the result.")] = False

    def requested(self, levels: Sequence[str]) -> bool:
        """Whether the options ask for a mix. Usage: with levels, several sizes, or nothing."""
        count = sum(v is not None for v in (self.size, self.bpw, self.max_kld, self.like))
        if levels and (count or self.curve):
            raise Usage("give levels, or a size, but not both")
        if count > 1:
            raise Usage("--size, --bpw, --max-kld and --like exclude each other")
        if not (levels or count or self.curve):
            raise Usage("there is nothing to make: give levels, or a size", _HELP)
        return not levels

    def settings(self, quantize: QuantizeSettings) -> MixSettings:
        """What the solver takes. Usage: options that only levels have; NotFound: no sensitivity."""
        from minitron_quant.mixed_precision.build_mix import MixSettings

        options = quantize.options
        chosen = options.pure or options.overrides or options.keep_split
        if chosen or quantize.include or quantize.exclude or quantize.output:
            raise Usage(
                "a mix for a size excludes -o, --pure, --override-kv, --keep-split, "
                "--include-weights and --exclude-weights"
            )
        return MixSettings(
            quantize,
            self.sensitivity or _sensitivity_beside(quantize),
            self._wanted(),
            self._restrictions(quantize),
            None if self.no_verify or self.curve else self.verification(quantize),
        )

    def verification(self, quantize: QuantizeSettings) -> MeasureSettings:
        """How the result is measured: on --held-out, beside the source. Usage: no such text."""
        from minitron_quant.chunking import ChunkSettings
        from minitron_quant.perplexity.settings import MeasureSettings

        if self.held_out is None:
            raise Usage(
                "--held-out TEXT is required to verify the mix",
                "give a text other than the calibration text, or --no-verify",
            )
        chunks = ChunkSettings(limit=self.chunks, threads=quantize.threads)
        return MeasureSettings(
            (),
            self.held_out,
            chunks,
            quantize.gpu_layers,
            reference=quantize.source,
            placement=quantize.placement,
        )

    def _wanted(self) -> MixTarget:
        from minitron_quant.levels import level_named
        from minitron_quant.mixed_precision.build_mix import MixTarget

        return MixTarget(
            None if self.size is None else parse_size(self.size),
            self.bpw,
            None if self.like is None else level_named(self.like),
            self.max_kld,
        )

    def _restrictions(self, quantize: QuantizeSettings) -> Restrictions:
        from minitron_core.gguf import F32
        from minitron_quant.mixed_precision.size_solver import Restrictions
        from minitron_quant.quantize.options import parse_tensor_type

        options = quantize.options
        pins = list(options.tensor_types)
        if options.output_type is not None:
            pins.insert(0, (r"^output\.weight$", options.output_type))
        if options.embedding_type is not None:
            pins.insert(0, (r"^token_embd\.weight$", options.embedding_type))
        floors = list(map(parse_tensor_type, self.floor or ()))
        if options.leave_output:
            floors.insert(0, (r"^output\.weight$", F32))
        types, excluded = parse_types(self.types)
        return Restrictions(types, excluded, tuple(pins), tuple(floors))


_HELP = "minitron quantize --help"


@option_group
class TensorOptions:
    """Types of single tensors."""

    pure: Annotated[bool, _tensors("--pure", help="One type for all tensors, no mix.")] = False
    tensor_type: Annotated[
        list[str] | None, _tensors(metavar="PATTERN=TYPE", help="Type of matching tensors.")
    ] = None
    output_tensor_type: Annotated[
        str | None, _tensors(metavar="TYPE", help="Type of output.weight.")
    ] = None
    token_embedding_type: Annotated[
        str | None, _tensors(metavar="TYPE", help="Type of token_embd.weight.")
    ] = None
    leave_output_tensor: Annotated[
        bool, _tensors("--leave-output-tensor", help="Do not quantize output.weight.")
    ] = False


@option_group
class OutputOptions:
    """Where the files go, and what is in them besides tensors."""

    directory: Annotated[
        Path | None, _output("-d", "--directory", help="Folder of {Model}-{LEVEL}.gguf.")
    ] = None
    output: Annotated[
        Path | None, _output("-o", "--output", help="The file of a single level.")
    ] = None
    override_kv: Annotated[
        list[str] | None, _output(metavar="KEY=TYPE:VALUE", help="Set a metadata key.")
    ] = None
    keep_split: Annotated[
        bool, _output("--keep-split", help="As many shards as the source has.")
    ] = False
    keep_f16: Annotated[
        bool,
        _output("--keep-f16", help="Write a checkpoint's full-precision file too, and keep it."),
    ] = False
    errors: Annotated[
        Path | None,
        _output(metavar="FILE.json", help="Write the encoding error of every tensor and type."),
    ] = None
    dry_run: Annotated[bool, _output("--dry-run", help="Only show the plan.")] = False
    force: Annotated[bool, _output("--force", help="Replace files that exist.")] = False

    def refuse_dry_run(self) -> None:
        """Usage: --dry-run with a mix, whose plan is its solution."""
        if self.dry_run:
            raise Usage("--dry-run shows levels only", "--curve shows what a mix would be")


def quantize_settings(
    model: Path,
    names: Sequence[str],
    levels: LevelOptions,
    tensors: TensorOptions,
    target: OutputOptions,
    threads: int | None,
) -> QuantizeSettings:
    """What the library takes. Errors: Usage, Unsupported: names of levels and types."""
    from minitron_cli.inputs import folder_for_results, refuse_folder
    from minitron_quant.levels import parse_levels
    from minitron_quant.quantize.options import (
        QuantizeOptions,
        parse_override,
        parse_tensor_type,
        type_named,
    )
    from minitron_quant.quantize.prepare import QuantizeSettings

    _refuse_file_among_levels(model, names)
    refuse_folder(target.output)
    refuse_folder(target.errors)
    output, embedding = tensors.output_tensor_type, tensors.token_embedding_type
    options = QuantizeOptions(
        pure=tensors.pure,
        tensor_types=tuple(map(parse_tensor_type, tensors.tensor_type or ())),
        output_type=type_named(output) if output else None,
        embedding_type=type_named(embedding) if embedding else None,
        leave_output=tensors.leave_output_tensor,
        allow_requantize=levels.allow_requantize,
        keep_split=target.keep_split,
        overrides=tuple(map(parse_override, target.override_kv or ())),
    )
    return QuantizeSettings(
        source=model,
        levels=tuple(parse_levels(names)),
        directory=target.directory or folder_for_results(model),
        output=target.output,
        imatrix=levels.imatrix,
        include=tuple(levels.include_weights or ()),
        exclude=tuple(levels.exclude_weights or ()),
        options=options,
        errors=target.errors,
        threads=threads,
        replace="always" if target.force else "never",
    )


def _refuse_file_among_levels(model: Path, names: Sequence[str]) -> None:
    """Usage where a file stands among the levels, as llama-quantize takes its output."""
    file = next((name for name in names if name.lower().endswith(".gguf")), None)
    if file is not None:
        level = next((name for name in names if name != file and not name.isdecimal()), "Q4_K_M")
        raise Usage(
            f"{file} is a file, not a level; the output follows -o",
            f"write: minitron quantize {model} {level} -o {file}",
        )


def parse_types(text: str | None) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The types to choose from (None: all), and those to leave out, each named with a minus.

    Types that a device in use cannot run are left out. Unsupported: one of them was named.
    """
    from minitron_core.gguf import TYPE
    from minitron_engine.llama.kernel_support import types_without_kernel
    from minitron_quant.quantize.options import ENCODABLE, type_named

    names = [name for name in (text or "").split(",") if name]
    excluded = tuple(type_named(name[1:]) for name in names if name.startswith("-"))
    chosen = tuple(type_named(name) for name in names if not name.startswith("-"))
    if excluded and chosen:
        raise Usage("--types takes the types to use, or those to leave out (-iq1_s), not both")
    cannot = types_without_kernel(chosen or ENCODABLE)
    if chosen and cannot:
        ggml_type, device = next(iter(cannot.items()))
        raise Unsupported(f"{device} cannot run {TYPE[ggml_type].name}", "leave it out of --types")
    return chosen or None, (*excluded, *cannot)


def _sensitivity_beside(quantize: QuantizeSettings) -> Path:
    from minitron_quant.quantize.prepare import folder_of, model_name

    name = f"{model_name(quantize.source)}.sensitivity.json"
    folders = (folder_of(quantize), quantize.source.parent)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise NotFound(
        f"a size needs the model's sensitivity, and there is no {folders[-1] / name}",
        "measure it: minitron sensitivity MODEL -f TEXT; or name one with --sensitivity",
    )
