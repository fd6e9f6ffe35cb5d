"""What a shell offers on Tab: levels, models here and in the Hub's cache, job files."""

from collections.abc import Iterator
from pathlib import Path


def complete_level(incomplete: str) -> list[str]:
    """Levels that begin so, in the case that was typed; `all` among them."""
    from minitron_quant.levels import level_choices

    found = [name for name in level_choices() if name.upper().startswith(incomplete.upper())]
    return [name.lower() for name in found] if incomplete.islower() else found


def complete_task(incomplete: str) -> list[tuple[str, str]]:
    """Tasks that begin so, with what each one asks."""
    from minitron_quant.tasks.registry import task_named, task_names

    return [(name, task_named(name).help) for name in task_names() if name.startswith(incomplete)]


def complete_outtype(incomplete: str) -> list[str]:
    """Output types that begin so: the converter's own, and levels in the case that was typed."""
    from minitron_convert.outtypes import OUTTYPES

    own = [name for name in OUTTYPES if name.startswith(incomplete.lower())]
    levels = complete_level(incomplete) if incomplete else []
    return [*own, *(name for name in levels if name.lower() not in (*own, "all"))]


def complete_model(incomplete: str) -> list[str]:
    """GGUF files and folders that begin so, and models that the Hub's cache holds."""
    return [*_paths(incomplete, ".gguf"), *_cached(incomplete)]


def complete_job(incomplete: str) -> list[str]:
    """TOML files and folders that begin so."""
    return list(_paths(incomplete, ".toml"))


def _paths(incomplete: str, suffix: str) -> Iterator[str]:
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser()
    try:
        found = sorted(place.iterdir())
    except OSError:
        return
    head = incomplete[: len(incomplete) - len(start)]
    for path in found:
        if not path.name.startswith(start) or (path.name.startswith(".") and not start):
            continue
        if path.is_dir():
            yield f"{head}{path.name}/"
        elif path.suffix == suffix:
            yield f"{head}{path.name}"


def _cached(incomplete: str) -> Iterator[str]:
    """owner/name:LEVEL of every model in the cache, in the spelling that was begun."""
    from huggingface_hub import constants

    from minitron_convert.hub.published_names import models_called, models_in, spellings

    level = incomplete.partition(":")[2]
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if not (f"{name}:".startswith(incomplete) or incomplete.startswith(f"{name}:")):
            continue
        place = folder / "snapshots"
        files = {path.relative_to(place).as_posix() for path in place.rglob("*.gguf")}
        models = models_in(file.partition("/")[2] for file in files)
        for model in models:
            for spelling in spellings(model):
                offered = spelling if spelling.startswith(level) else spelling.lower()
                if offered.startswith(level) and models_called(spelling, models) == [model]:
                    yield f"{name}:{offered}"
                    break
