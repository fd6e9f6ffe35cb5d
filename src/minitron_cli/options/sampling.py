"""The options of sampling, named as llama.cpp's tools name them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


def _option(*names: str, default: str = "", help: str = "", **more: Any) -> Any:
    # the default is shown only: what is not given may come from the model's metadata
    shown: Any = default or True
    return typer.Option(*names, show_default=shown, help=help, rich_help_panel="Sampling", **more)


Number = float | None
Count = int | None


@dataclass(frozen=True)
class SamplingOptions:
    """What was said of sampling; None where nothing was said."""

    temperature: Annotated[
        Number, _option("--temp", "--temperature", min=0.0, default="0.8", help="0 is greedy.")
    ] = None
    seed: Annotated[
        Count,
        _option("--seed", "-s", min=0, max=2**32 - 2, help="Random when not given; shown."),
    ] = None
    samplers: Annotated[
        str | None,
        _option(
            metavar="NAME;…",
            help="Which samplers, in which order.",
            default="penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
        ),
    ] = None
    top_k: Annotated[Count, _option(default="40", help="Only the likeliest k; 0 for all.")] = None
    top_p: Annotated[
        Number, _option(min=0.0, max=1.0, default="0.95", help="Nucleus; 1 for all.")
    ] = None
    min_p: Annotated[
        Number, _option(min=0.0, max=1.0, default="0.05", help="Floor, relative to the likeliest.")
    ] = None
    typical: Annotated[
        Number,
        _option("--typical", "--typical-p", min=0.0, max=1.0, default="1", help="1 is off."),
    ] = None
    top_n_sigma: Annotated[
        Number,
        _option("--top-n-sigma", "--top-nsigma", default="-1", help="Logits within n sigmas."),
    ] = None
    xtc_probability: Annotated[
        Number, _option(min=0.0, max=1.0, default="0", help="How often the top is excluded.")
    ] = None
    xtc_threshold: Annotated[
        Number, _option(min=0.0, max=1.0, default="0.1", help="What counts as the top.")
    ] = None
    repeat_last_n: Annotated[
        Count, _option(min=0, default="64", help="Tokens that the penalties look at.")
    ] = None
    repeat_penalty: Annotated[Number, _option(default="1", help="1 is off.")] = None
    presence_penalty: Annotated[Number, _option(default="0", help="0 is off.")] = None
    frequency_penalty: Annotated[Number, _option(default="0", help="0 is off.")] = None
    dry_multiplier: Annotated[
        Number, _option(default="0", help="Penalty on repeated sequences; 0 is off.")
    ] = None
    dry_base: Annotated[Number, _option(min=1.0, default="1.75", help="Growth with length.")] = None
    dry_allowed_length: Annotated[Count, _option(default="2", help="Free repetitions.")] = None
    dry_penalty_last_n: Annotated[Count, _option(min=0, default="64", help="0 is off.")] = None
    dry_sequence_breaker: Annotated[
        list[str] | None,
        _option(metavar="TEXT", help='Instead of newline : " *; none for no breakers.'),
    ] = None
    dynatemp_range: Annotated[
        Number, _option(default="0", help="Temperature ± this, by entropy; 0 is off.")
    ] = None
    dynatemp_exp: Annotated[Number, _option(default="1", help="Entropy to temperature.")] = None
    mirostat: Annotated[
        Count, _option(min=0, max=2, default="0", help="1 or 2, instead of the samplers.")
    ] = None
    mirostat_lr: Annotated[Number, _option(default="0.1", help="Its learning rate.")] = None
    mirostat_ent: Annotated[Number, _option(default="5", help="Its target entropy.")] = None
    adaptive_target: Annotated[
        Number, _option(max=1.0, default="-1", help="Probability that adaptive_p aims at.")
    ] = None
    adaptive_decay: Annotated[
        Number, _option(min=0.0, max=0.99, default="0.9", help="How slowly it adapts.")
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        _option("--logit-bias", "-l", metavar="ID±BIAS", help="As 15043+1 or 15043-inf."),
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Never end.", rich_help_panel="Sampling")
    ] = False
    grammar: Annotated[Path | None, _option(metavar="FILE", help="A GBNF grammar to obey.")] = None
    json_schema: Annotated[Path | None, _option(metavar="FILE", help="A JSON schema to obey.")] = (
        None
    )

    def given(self) -> dict[str, Any]:
        """The engine's settings as far as they were said; a seed is always among them."""
        said = {name: value for name, value in vars(self).items() if value not in (None, [], ())}
        schema, breakers = said.pop("json_schema", None), said.pop("dry_sequence_breaker", None)
        said["seed"] = _random_seed() if self.seed is None else self.seed
        said["grammar"] = _grammar(self.grammar, schema)
        if self.samplers is not None:
            said["samplers"] = tuple(filter(None, self.samplers.split(";")))
        if self.logit_bias:
            said["logit_bias"] = tuple(map(_bias, self.logit_bias))
        if breakers is not None:
            said["dry_sequence_breakers"] = () if "none" in breakers else tuple(breakers)
        return said


def _random_seed() -> int:
    import secrets

    return secrets.randbelow(2**32 - 1)


def _bias(text: str) -> tuple[int, float]:
    found = re.fullmatch(r"(\d+)([+-](?:\d+\.?\d*|\.\d+|inf))", text)
    if not found or len(found[1]) > 9:
        raise typer.BadParameter(f"{text!r} is not a token's number, a sign and a bias.")
    return int(found[1]), float(found[2])


def _grammar(grammar: Path | None, schema: Path | None) -> str:
    from minitron_core.errors import Usage
    from minitron_engine.isolation.json_schema import schema_grammar
    from minitron_quant.chunking import read_text

    if grammar is not None and schema is not None:
        raise Usage("--grammar and --json-schema exclude each other")
    if grammar is not None:
        return read_text(grammar)
    return schema_grammar(read_text(schema)) if schema is not None else ""
