"""Experts that a checkpoint stores one by one, stacked into tensors of three dimensions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from minitron_convert.architectures.model_tensor import ModelTensor, WrongShape, stack
from minitron_convert.architectures.record import Experts
from minitron_core.errors import Damaged


class ExpertStacks:
    """Experts on their way into stacks, by the layer's prefix."""

    def __init__(self, experts: Experts | None, count: int, folder: Path) -> None:
        self._experts, self._count, self._folder = experts, count, folder
        self._held: dict[str, dict[tuple[str, int], ModelTensor]] = {}

    def add(self, tensor: ModelTensor) -> Iterator[ModelTensor]:
        """The tensor itself, or for a layer's last expert the stacks of all of them."""
        experts = self._experts
        found = re.fullmatch(experts.pattern, tensor.name) if experts else None
        if experts is None or found is None:
            yield tensor
            return
        held = self._held.setdefault(found["prefix"], {})
        held[found["part"], int(found["expert"])] = tensor
        if len(held) < self._count * len(experts.parts):
            return
        block = found["prefix"].rpartition(".")[2]
        del self._held[found["prefix"]]
        for part, kind in experts.parts.items():
            try:
                each = [held[part, expert] for expert in range(self._count)]
                yield stack(f"blk.{block}.{kind}.weight", each)
            except (KeyError, WrongShape) as error:
                raise self._incomplete(found["prefix"]) from error

    def check_empty(self) -> None:
        """Damaged if a layer has not all of its experts."""
        for prefix in self._held:
            raise self._incomplete(prefix)

    def _incomplete(self, prefix: str) -> Damaged:
        return Damaged(
            f"{self._folder}: {prefix} has not all tensors of its {self._count} experts, or some "
            "of another shape",
            "download the missing files, or check the number of experts in config.json",
        )
