"""Sections of other cards: of the original's card, and of a card that is made again."""

# sections of a source's card that hold for its quantizations as well
_CARRIED = ("limit", "bias", "ethical", "intended use", "out-of-scope", "responsible")


def kept_sections(written: str, made: str) -> str:
    """The sections of an old card whose headings the new one does not have, in their order."""
    there = {heading for heading, _ in sections(made)}
    kept = [text for heading, text in sections(written) if heading not in there]
    return "\n\n".join(text.strip() for text in kept)


def sections(text: str) -> list[tuple[str, str]]:
    """The parts of a text that begin with a heading of the second level, with their headings."""
    found: list[tuple[str, list[str]]] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            found.append((line[3:].strip(), []))
        if found:
            found[-1][1].append(line)
    return [(heading, "\n".join(lines)) for heading, lines in found]


def carried_sections(content: str) -> str:
    """The sections of the source's card about limits and use, as they stand there."""
    lines: list[str] = []
    depth = 0
    fenced = False
    for line in content.splitlines():
        fenced ^= line.lstrip().startswith("```")
        level = 0 if fenced else len(line) - len(line.lstrip("#"))
        if level and level <= (depth or level):
            depth = level if any(word in line.lower() for word in _CARRIED) else 0
        if depth:
            lines.append("##" + line[level:] if level and level <= depth else line)
    text = "\n".join(lines).strip()
    return f"{text}\n\n*The sections above are those of the original model's card.*" if text else ""
