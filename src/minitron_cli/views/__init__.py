"""How results look: tables, text and JSON."""
