"""The table of parsers: what opens an input, its seeds, its damage."""

from hardening.fuzz import model_files, texts

TARGETS = {target.name: target for target in (*model_files.TARGETS, *texts.TARGETS)}
