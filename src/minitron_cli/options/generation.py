"""Groups of options of `generate`: adapters, devices, and how to guess ahead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from minitron_cli.output import Output
    from minitron_engine.llama.adapters import Adapter
    from minitron_engine.memory.placement import Placement

_DEVICES = "Several devices"
_GUESSING = "Speculative decoding"


@dataclass(frozen=True)
class SpeculationOptions:
    """Where guesses come from, if any."""

    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="A smaller model, or a lower level of this one, that guesses ahead.",
            rich_help_panel=_GUESSING,
        ),
    ] = None
    lookup: Annotated[
        bool,
        typer.Option("--lookup", help="Guess from earlier repetitions.", rich_help_panel=_GUESSING),
    ] = False
    draft_max: Annotated[
        int, typer.Option(min=1, max=64, help="Guesses at once.", rich_help_panel=_GUESSING)
    ] = 8
    draft_min_p: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Only guesses this probable.", rich_help_panel=_GUESSING
        ),
    ] = 0.75

    def resolved(self, out: Output) -> SpeculationOptions:
        """The same with the draft as a file. Raises Usage for two kinds of guesses."""
        from minitron_cli.inputs import local_model
        from minitron_core.errors import Usage

        if self.draft is None:
            return self
        if self.lookup:
            raise Usage("--draft and --lookup exclude each other")
        draft = local_model(self.draft, out)
        return SpeculationOptions(draft, False, self.draft_max, self.draft_min_p)


@dataclass(frozen=True)
class AdapterOptions:
    """LoRA adapters with their scales."""

    lora: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A LoRA adapter; several add up.")
    ] = None
    lora_scaled: Annotated[
        list[str] | None, typer.Option(metavar="FILE=SCALE", help="The same with a scale.")
    ] = None

    def adapters(self) -> tuple[Adapter, ...]:
        """All of them, each file's header checked."""
        from minitron_core.gguf import open_gguf
        from minitron_engine.llama.adapters import Adapter

        found = [Adapter(path) for path in self.lora or ()]
        found += [Adapter(*_scaled(text)) for text in self.lora_scaled or ()]
        for adapter in found:
            open_gguf(adapter.path)
        return tuple(found)


@dataclass(frozen=True)
class DeviceOptions:
    """How a model is spread over devices."""

    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="GPUs to use, as doctor names them; none: the CPU.",
            rich_help_panel=_DEVICES,
        ),
    ] = None
    split_mode: Annotated[
        Literal["none", "layer", "row", "tensor"],
        typer.Option(help="How several GPUs share a model.", rich_help_panel=_DEVICES),
    ] = "layer"
    tensor_split: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Shares of the GPUs.", rich_help_panel=_DEVICES),
    ] = None
    main_gpu: Annotated[
        int, typer.Option(min=0, help="The GPU of split mode none.", rich_help_panel=_DEVICES)
    ] = 0
    rpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,…",
            help="Devices of llama.cpp's RPC servers too; in a private network only.",
            rich_help_panel=_DEVICES,
        ),
    ] = None

    def placement(self, out: Output) -> Placement:
        """What the engine takes; RPC servers are known afterwards."""
        from minitron_engine.llama.rpc import RPC_WARNING, add_rpc_servers
        from minitron_engine.memory.placement import Placement

        if self.rpc is not None:
            out.note(RPC_WARNING)
            add_rpc_servers(tuple(self.rpc.split(",")))
        names = None if self.device is None else tuple(self.device.split(","))
        try:
            shares = tuple(map(float, (self.tensor_split or "").split(",")))
        except ValueError:
            if self.tensor_split is not None:
                raise typer.BadParameter(f"{self.tensor_split!r} is no list of shares.") from None
            shares = ()
        return Placement(
            self.split_mode, shares, self.main_gpu, () if names == ("none",) else names
        )


def _scaled(text: str) -> tuple[Path, float]:
    path, _, scale = text.rpartition("=")
    try:
        if path:
            return Path(path), float(scale)
    except ValueError:
        pass
    raise typer.BadParameter(f"{text!r} is not a file, = and a scale.")
