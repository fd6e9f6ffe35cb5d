"""llama.cpp's names and habits: options that its users type, in the words of this command line."""

import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_core.errors import Usage

# llama.cpp's name → ours, of all its programs (common/arg.cpp, tools/); one that a command does not
# have is refused as any other
NAMES = {
    "-a": "--name",
    "--alias": "--name",
    "-b": "--batch",
    "--batch-size": "--batch",
    "-c": "--ctx",
    "--ctx-size": "--ctx",
    "-ctk": "--cache-type-k",
    "-ctv": "--cache-type-v",
    "-dev": "--device",
    "--draft-n": "--draft-max",
    "--draft-p-min": "--draft-min-p",
    "-fa": "--flash-attn",
    "--grammar-file": "--grammar",
    "-jf": "--json-schema",
    "--json-schema-file": "--json-schema",
    "-md": "--draft",
    "--model-draft": "--draft",
    "-mg": "--main-gpu",
    "-n": "--n-predict",
    "--predict": "--n-predict",
    "--max-tokens": "--n-predict",
    "--n-depth": "--depth",
    "--n-gpu-layers": "--gpu-layers",
    "-ngl": "--gpu-layers",
    "-np": "--parallel",
    "--n-parallel": "--parallel",
    "--outfile": "--output",
    "--output-file": "--output",
    "--output-format": "--format",
    "--ppl-stride": "--stride",
    "-r": "--stop",
    "--reverse-prompt": "--stop",
    "-s": "--seed",
    "--save-frequency": "--save-every",
    "-sm": "--split-mode",
    "-sys": "--system",
    "--system-prompt": "--system",
    "-t": "--threads",
    "-ts": "--tensor-split",
    "-ub": "--ubatch",
    "--ubatch-size": "--ubatch",
}
# these name what is an argument here: the model comes first, the prompt after it
MODEL_NAMES = ("-m", "--model", "-hf", "-hfr", "--hf-repo")
PROMPT_NAMES = ("-p", "--prompt")
# values that stand for a default here: all chunks, as many threads as there are processors
_SAME_AS_NONE = {("--chunks", "-1"), ("--threads", "-1"), ("--threads", "0")}
# what --ctx 0 becomes until the model is known: the context that it was trained on
TRAINED = 2**31 - 1


def translated(args: Sequence[str], params: Sequence[Any]) -> list[str]:
    """Arguments of a command with llama.cpp's names, in ours.

    params: those of the command. What it knows itself, and the values of its options, stay.
    """
    known = {name: param for param in params for name in param.opts if name.startswith("-")}
    arguments = [param.name for param in params if param.param_type_name == "argument"]
    models, prompts, rest = list[str](), list[str](), list[str]()
    queue = list(args)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return [*models, *rest, *prompts, word, *queue]
        name, equals, value = word.partition("=")
        target = NAMES.get(name, name)
        positional = _positional(name, known, arguments)
        if not equals and not queue:
            if target not in known:
                _refuse_cluster(word, known)
            rest.append(target if target in known else word)
        elif positional:
            place = models if positional == "model" else prompts
            place.append(value if equals else queue.pop(0))
        elif target not in known:
            _refuse_cluster(word, known)
            rest.append(word)
        elif known[target].is_flag:
            rest.append(f"{target}={value}" if equals else target)
        else:
            given = _given(target, value if equals else queue.pop(0))
            rest += [f"{target}={given}"] if equals and given is not None else []
            rest += [target, given] if not equals and given is not None else []
    return [*models, *rest, *prompts]


def _refuse_cluster(word: str, known: Mapping[str, Any]) -> None:
    """Usage for -ngl where there is no such option: it does not mean -n with the value gl."""
    letters = re.match(r"-([A-Za-z]{2,})", word)
    if letters is None:
        return
    shorts = [known.get(f"-{letter}") for letter in letters[1]]
    if not all(param is not None and param.is_flag for param in shorts):
        raise Usage(f"no such option: {word}", "--help lists the options of a command")


def _positional(name: str, known: Container[str], arguments: Container[str]) -> str:
    """The argument that an option of llama.cpp's names, where this command has it."""
    for argument, names in (("model", MODEL_NAMES), ("prompt", PROMPT_NAMES)):
        if name in names and name not in known and argument in arguments:
            return argument
    return ""


def _given(name: str, value: str) -> str | None:
    """The value of an option in this command line's sense; None where it says what is so anyway."""
    if (name, value) in _SAME_AS_NONE:
        return None
    if (name, value) == ("--seed", "-1"):
        import secrets  # here, since it loads OpenSSL

        return str(secrets.randbelow(2**31))
    return {("--n-predict", "-2"): "-1", ("--ctx", "0"): str(TRAINED)}.get((name, value), value)


def fill_in_trained_context(values: dict[str, Any]) -> None:
    """Put the model's own context where --ctx 0 asked for it, in the parameters of a command.

    Usage: the model does not say which.
    """
    if values.get("ctx") != TRAINED:
        return
    model = values.get("model") or (values.get("models") or [None])[0]
    found = _trained_context(Path(model)) if model else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Usage(
            "--ctx 0 is the trained context, which the model does not tell", "give a number"
        )
    values["ctx"] = found


def _trained_context(model: Path) -> object:
    from minitron_cli.inputs import model_header
    from minitron_core.gguf import open_gguf

    with model_header(model) as path:
        file = open_gguf(path)
        return file.get(f"{file.get('general.architecture')}.context_length")
