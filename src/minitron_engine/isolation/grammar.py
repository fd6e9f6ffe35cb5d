"""Check a GBNF grammar before llama.cpp sees it.

llama.cpp prints to the terminal where a grammar does not parse, and hangs or ends the process on
some that do: left recursion behind rules that may be empty, deep nesting. The syntax is that of
llama.cpp's grammars/README.md.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from minitron_core.errors import Usage

MOST_REPETITIONS = 2000  # llama.cpp's own limit
_MOST_DIGITS = 9
# of one item, such as a+?; llama.cpp's work and memory grow with the fourth power of it
_MOST_REPEATED = 8
_MOST_EMPTY = 100  # of what may be empty: so many ways to match nothing at all
_DEEPEST = 200
_MOST_RULES = 20_000
_NAME = re.compile(r"[A-Za-z0-9-]+")
_CHAR = re.compile(
    r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\\"\[\]-])|[^\\]", re.DOTALL
)
_REPEAT = re.compile(r"\{[ \t]*(\d+)[ \t]*(?:(,)[ \t]*(\d*)[ \t]*)?\}")
_TOKEN = re.compile(r"!?(<\[\d+\]>|<[^>\0]*>)")
_TOKEN_ID = re.compile(r"<\[\d{1,9}\]>")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")

# the symbols of an alternative: names of rules, an empty one for a character or a token
Symbols = list[str]


@dataclass
class _Parser:
    """Parses rules into alternatives of symbols; groups and repetitions become rules themselves.

    Repetitions are rewritten as llama.cpp does it: S{m,} is S … S S' with S' ::= S S' | nothing.
    """

    text: str
    is_token: Callable[[str], bool]
    at: int = 0
    depth: int = 0
    rules: dict[str, list[Symbols]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)  # by rules that a later one replaces, too
    often: list[tuple[int, Symbols]] = field(default_factory=list)  # (position, symbols)

    def fail(self, reason: str) -> Usage:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - self.text.rfind("\n", 0, self.at)
        return Usage(
            f"the grammar does not parse: line {line}, column {column}: {reason}",
            "a grammar is GBNF text with a rule named root",
        )

    def skip(self, lines: bool) -> None:
        found = (_BLANK_LINES if lines else _BLANK).match(self.text, self.at)
        self.at = found.end() if found else self.at

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def match(self, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if not found:
            raise self.fail(f"expected {expected}")
        self.at = found.end()
        return found

    def add(self, alternatives: list[Symbols]) -> str:
        name = f"({len(self.rules)})"
        self.rules[name] = alternatives
        if len(self.rules) > _MOST_RULES:
            raise self.fail("the grammar is too large")
        return name

    def parse(self) -> None:
        self.skip(lines=True)
        while self.at < len(self.text):
            name = self.match(_NAME, "the name of a rule").group()
            self.skip(lines=False)
            self.match(re.compile("::="), "::=")
            self.skip(lines=True)
            self.rules[name] = self.alternatives(nested=False)
            if self.peek() not in ("", "\r", "\n"):
                raise self.fail("expected the end of the line")
            self.skip(lines=True)

    def alternatives(self, nested: bool) -> list[Symbols]:
        found = [self.sequence(nested)]
        while self.peek() == "|":
            self.at += 1
            self.skip(lines=True)
            found.append(self.sequence(nested))
        return found

    def sequence(self, nested: bool) -> Symbols:
        items: Symbols = []
        last: Symbols = []
        rules = 1  # that the last item stands for, as llama.cpp counts them against its limit
        repeated = 0
        while char := self.peek():
            if char in "*+?{":
                if not last:
                    raise self.fail(f"nothing stands before {char}")
                least, most = self.bounds(char)
                rules *= most or least or 1
                repeated += 1
                if rules > MOST_REPETITIONS or repeated > _MOST_REPEATED:
                    raise self.fail("too many repetitions of repetitions")
                last = self.repeated(last, least, most)
            elif char in '"[<!(.' or _NAME.match(char):
                items += last
                before = len(self.rules)
                last = self.item(char)
                rules = max(1, len(self.rules) - before)
                repeated = 0
            else:
                break
            self.skip(lines=nested)
        return items + last

    def item(self, char: str) -> Symbols:
        if char == '"':
            return self.characters('"')
        if char == "[":
            return self.characters("]")[:1]
        if char in "<!":
            token = self.match(_TOKEN, "a token as <name> or <[id]>").group(1)
            if not _TOKEN_ID.fullmatch(token) and not self.is_token(token):
                raise self.fail(f"{token} is not one token of this model")
            return [""]
        if char == "(":
            return [self.group()]
        if char == ".":
            self.at += 1
            return [""]
        name = self.match(_NAME, "a name").group()
        self.named.add(name)
        return [name]

    def group(self) -> str:
        self.at += 1
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.fail("groups are nested too deeply")
        self.skip(lines=True)
        name = self.add(self.alternatives(nested=True))
        if self.peek() != ")":
            raise self.fail("expected )")
        self.at += 1
        self.depth -= 1
        return name

    def characters(self, end: str) -> Symbols:
        self.at += 2 if self.text.startswith("[^", self.at) else 1
        found: Symbols = []
        while self.peek() != end:
            if not self.peek():
                raise self.fail(f"expected {end}")
            self.match(_CHAR, "a character or an escape")
            found.append("")
        self.at += 1
        return found

    def bounds(self, char: str) -> tuple[int, int | None]:
        if char != "{":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        least, comma, most = self.match(_REPEAT, "a repetition as {2}, {2,} or {2,5}").groups()
        if max(len(least), len(most or "")) > _MOST_DIGITS:
            raise self.fail(f"more than {MOST_REPETITIONS} repetitions")
        high = int(least) if comma is None else int(most) if most else None
        if max(int(least), high or 0) > MOST_REPETITIONS:
            raise self.fail(f"more than {MOST_REPETITIONS} repetitions")
        if high is not None and high < int(least):  # llama.cpp would count down without end
            raise self.fail(f"from {least} to {high} repetitions")
        return int(least), high

    def repeated(self, last: Symbols, least: int, most: int | None) -> Symbols:
        if max(least, most or 0) > _MOST_EMPTY:
            self.often.append((self.at, last))
        rest: Symbols = []
        if most is None:
            name = self.add([[]])
            self.rules[name].insert(0, [*last, name])
            rest = [name]
        for _ in range((most or 0) - least):
            rest = [self.add([[*last, *rest], []])]
        # more than two copies are to this check what two are
        return last * min(least, 2) + rest


def check_grammar(text: str, is_token: Callable[[str], bool]) -> None:
    """Raise Usage, with line and column if possible, for a grammar that llama.cpp cannot take.

    is_token: whether a text such as <|end|> is one token of the model.
    """
    if "\0" in text:
        raise Usage("the grammar does not parse: it has a NUL character")
    parser = _Parser(text, is_token)
    parser.parse()
    rules = parser.rules
    if "root" not in rules:
        raise Usage("the grammar has no rule named root")
    for name in sorted(parser.named):
        if name not in rules:
            raise Usage(f"the grammar names a rule {name} that it does not define")
    empty = _nullable(rules)
    for at, repeated in parser.often:
        if empty.issuperset(repeated):
            parser.at = at
            raise parser.fail(f"more than {_MOST_EMPTY} repetitions of what may be empty")
    recursive = _left_recursion(rules, empty)
    if recursive is not None:
        raise Usage(
            f"the grammar's rule {recursive} begins with itself, or repeats what may be empty"
            if not recursive.startswith("(")
            else "the grammar repeats something that may be empty",
            "write the recursion at the end of the rule",
        )


def _nullable(rules: dict[str, list[Symbols]]) -> set[str]:
    empty: set[str] = set()
    while True:
        more = {
            name
            for name, alternatives in rules.items()
            if name not in empty and any(empty.issuperset(sequence) for sequence in alternatives)
        }
        if not more:
            return empty
        empty |= more


def _left_recursion(rules: dict[str, list[Symbols]], empty: set[str]) -> str | None:
    # a rule that can begin with itself, after rules that may be empty: a cycle among first symbols
    done: set[str] = set()
    for start in rules:
        path: dict[str, list[str]] = {}
        name: str | None = start
        while name is not None:
            if name in path:
                return name
            path[name] = sorted(_firsts(rules[name], empty) - done)
            name = _next(path, done)
    return None


def _next(path: dict[str, list[str]], done: set[str]) -> str | None:
    # the next rule to visit, depth first; rules with nothing left are done
    while path:
        name, waiting = next(reversed(path.items()))
        while waiting:
            following = waiting.pop()
            if following not in done:
                return following
        done.add(name)
        del path[name]
    return None


def _firsts(alternatives: list[Symbols], empty: set[str]) -> set[str]:
    found = set()
    for sequence in alternatives:
        for symbol in sequence:
            if symbol:
                found.add(symbol)
            if symbol not in empty:
                break
    return found
