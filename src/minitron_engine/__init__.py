"""llama.cpp in this process, through its C API: models, contexts, logits, generation."""

import os

# libgomp reads this when llama.cpp is loaded. By default its threads spin for milliseconds at
# every barrier, and beside any other busy program a decode takes five times as long; with a
# shorter spin it takes twice as long, and on an idle machine nothing is lost.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

# numpy reads this when it is loaded. What calls BLAS here runs in threads of its own, one for each
# core: with as many again in every product they wait for each other, at six times the work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
