"""`minitron serve`: the OpenAI API over one model. Needs the extra `serve`."""
