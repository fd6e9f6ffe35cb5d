"""Layer streaming: one layer of a model at a time runs over the states of a whole text."""
