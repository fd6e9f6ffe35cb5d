"""Input from strangers, checked or run in a limited process: grammars, schemas, templates."""
