"""How to use the files of a card: the format of prompts, and a line for each program."""

from minitron_core.errors import MinitronError
from minitron_core.gguf import Gguf
from minitron_engine.isolation.chat_template import open_template_text

_SYSTEM, _PROMPT = "{system prompt}", "{prompt}"


def usage(first: Gguf, repository: str | None, file: str, level: str) -> str:
    """Markdown: the prompt format of the model and how to run the file of a level.

    repository: owner/name on the Hub; without it the file is named as it lies in the folder.
    """
    return "\n\n".join(
        ["## How to use them", _prompt_format(first), _lines(repository, file, level)]
    )


def _lines(repository: str | None, file: str, level: str) -> str:
    if repository is None:
        commands = [f"llama-cli -m {file}", f"minitron chat {file}"]
    else:
        name = f"{repository}:{level}"
        commands = [
            f"llama-cli -hf {name}",
            f"ollama run hf.co/{name}",
            f"minitron chat {name}",
        ]
    return "```sh\n" + "\n".join(commands) + "\n```"


def _prompt_format(first: Gguf) -> str:
    template = first.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        return "This is a base model: it has no prompt format and continues the text it is given."
    messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _PROMPT},
    ]
    bos, eos = (_token(first, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    with open_template_text(template, bos, eos) as opened:
        for given in (messages, messages[1:]):
            try:
                text = opened.render(given)
            except MinitronError:
                continue  # some templates take no system prompt, and some refuse everything
            fence = "`" * 3
            while fence in text:
                fence += "`"
            told = "Prompt format, as the model's chat template writes it:"
            return f"{told}\n\n{fence}\n{text}\n{fence}"
    return "The model's chat template, which llama.cpp applies, gives the prompt format."


def _token(first: Gguf, key: str) -> str:
    number, tokens = first.get(key), first.get("tokenizer.ggml.tokens")
    if isinstance(number, int) and isinstance(tokens, list) and 0 <= number < len(tokens):
        return str(tokens[number])
    return ""
