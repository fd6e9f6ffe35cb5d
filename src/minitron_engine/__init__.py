"""llama.cpp through its C API: models, contexts, logits, hooks, sampling."""
