"""llama.cpp through its C API: models, contexts, logits, hooks, sampling."""

import os

# libgomp reads this when llama.cpp is loaded. By default its threads spin for milliseconds at
# every barrier, and beside any other busy program a decode takes five times as long; with a
# shorter spin it takes twice as long, and on an idle machine nothing is lost.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
