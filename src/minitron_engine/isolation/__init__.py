"""What runs in a process of its own with limits: grammars, JSON schemas and chat templates."""
