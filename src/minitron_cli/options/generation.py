"""Groups of options of `generate`: adapters, devices, speculative decoding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minitron_cli.options.groups import option_group
from minitron_core.errors import Usage
from minitron_core.quoting import quoted

if TYPE_CHECKING:
    from minitron_cli.output import Output
    from minitron_engine.llama.adapters import Adapter
    from minitron_engine.llama.settings import Placement

_device = partial(typer.Option, rich_help_panel="Several devices")
_draft = partial(typer.Option, rich_help_panel="Speculative decoding")


@option_group
class SpeculationOptions:
    """Where draft tokens come from, if any."""

    draft: Annotated[
        Path | None,
        _draft(
            metavar="MODEL",
            help="A smaller model, or a lower level of this one, that drafts tokens.",
        ),
    ] = None
    lookup: Annotated[
        bool,
        _draft("--lookup", help="Draft from repetitions in the text."),
    ] = False
    draft_max: Annotated[
        int,
        _draft(min=1, max=64, help="Drafted tokens at once."),
    ] = 8
    draft_min_p: Annotated[
        float,
        _draft(min=0.0, max=1.0, help="Least probability of a drafted token."),
    ] = 0.75

    def resolved(self, out: Output) -> SpeculationOptions:
        """The same with the draft model as a file. Usage: two sources of drafts."""
        from minitron_cli.inputs import local_model

        if self.draft is None:
            return self
        if self.lookup:
            raise Usage("--draft and --lookup exclude each other")
        draft = local_model(self.draft, out)
        return SpeculationOptions(draft, False, self.draft_max, self.draft_min_p)


@option_group
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
        if not (self.lora or self.lora_scaled):
            return ()
        from minitron_core.gguf import open_gguf
        from minitron_engine.llama.adapters import Adapter

        found = [Adapter(path) for path in self.lora or ()]
        found += [Adapter(*_scaled(text)) for text in self.lora_scaled or ()]
        for adapter in found:
            open_gguf(adapter.path)
        return tuple(found)


@option_group
class DeviceOptions:
    """How a model is spread over devices."""

    device: Annotated[
        str | None,
        _device(metavar="NAME,…", help="GPUs to use, as doctor names them; none: the CPU."),
    ] = None
    split_mode: Annotated[
        Literal["none", "layer", "row", "tensor"],
        _device(help="How several GPUs share a model."),
    ] = "layer"
    tensor_split: Annotated[
        str | None,
        _device(metavar="A,B,…", help="Shares of the GPUs."),
    ] = None
    main_gpu: Annotated[int, _device(min=0, help="The GPU of split mode none.")] = 0
    rpc: Annotated[
        str | None,
        _device(
            metavar="HOST:PORT,…",
            help="Devices of llama.cpp's RPC servers too; in a private network only.",
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether any of them was set."""
        return vars(self) != vars(DeviceOptions())

    def placement(self, out: Output) -> Placement:
        """What the engine takes; RPC servers are known afterwards."""
        from minitron_engine.llama.settings import Placement

        if self.rpc is not None:
            from minitron_engine.llama.rpc import RPC_WARNING, add_rpc_servers

            out.note(RPC_WARNING)
            add_rpc_servers(tuple(self.rpc.split(",")))
        names = None if self.device is None else tuple(self.device.split(","))
        try:
            shares = tuple(map(float, (self.tensor_split or "").split(",")))
        except ValueError:
            if self.tensor_split is not None:
                raise Usage(
                    f"{quoted(self.tensor_split)} is not a list of shares", "write 3,1"
                ) from None
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
    raise Usage(f"{quoted(text)} is not a file, = and a scale", "write style.gguf=0.5")
