"""Commands killed more than 200 times; `make harden` runs these, the suite does not.

Half of the moments are drawn by the clock, half by the lines of our code: those between a file's
last byte and its name are short, and are hit as often as the work itself.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, Material, Whole

pytestmark = pytest.mark.harden

# rounds by command; some jobs are done before their moment comes, and 200 are to be killed
ROUNDS = {
    "convert": 28,
    "imatrix": 28,
    "quantize": 44,
    "size": 16,
    "gptq": 20,
    "ppl": 32,
    "tasks": 20,
    "run": 34,
}
MOMENTS = [(name, seed) for name, count in ROUNDS.items() for seed in range(count)]


@pytest.mark.parametrize(("name", "seed"), MOMENTS)
def test_commands_resume_after_a_kill(
    name: str,
    seed: int,
    whole: Callable[[str], Whole],
    lines: Callable[[str], tuple[list[str], list[int]]],
    material: Material,
    tmp_path: Path,
) -> None:
    command, expected = COMMANDS[name], whole(name)
    draw = random.Random(f"{name} {seed}")
    folder = tmp_path / "job"
    folder.mkdir()
    words = command.words(material, folder)
    if seed % 2:
        names, executed = lines(name)
        line = draw.randrange(len(names))
        moment = draw.choice([at for at, number in enumerate(executed) if number == line])
        where = f"line {names[line]}, the {moment}th"
        killed = workshop.kill(workshop.start(words, (moment, tmp_path / "lines")), 300)
    else:
        seconds = draw.uniform(0, 0.95) * expected.seconds
        where = f"{seconds:.3f} s of {expected.seconds:.3f}"
        killed = workshop.kill(workshop.start(words), seconds)
    found = workshop.results(folder)
    assert found.items() <= expected.files.items(), f"killed at {where}"
    answer = workshop.finish([*words, *command.resume])
    assert workshop.results(folder) == expected.files, f"resumed after {where}"
    assert workshop.leftovers(folder) == set(), f"resumed after {where}"
    if command.answers:
        assert answer == expected.answer, f"resumed after {where}"
    print(f"\nKILLED {name} {seed} {'killed' if killed else 'was done'} at {where}")  # noqa: T201
