"""The tables of parsers and of commands: what opens an input, its seeds, its damage."""

from hardening.fuzz import commands, model_files, texts

PARSERS = {target.name: target for target in (*model_files.TARGETS, *texts.TARGETS)}
COMMANDS = {target.name: target for target in commands.TARGETS}
TARGETS = PARSERS | COMMANDS
