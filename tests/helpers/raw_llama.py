"""llama.cpp through its C API alone, with all of its defaults."""

import ctypes
from pathlib import Path

import numpy as np

from minitron_engine.llama.binding import api


def llama_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocabulary]; keys, values and scores in full precision."""
    log = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(log, ctypes.c_void_p(0))
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    assert model is not None, f"llama.cpp does not load {path.name}"
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = len(tokens)
    settings.n_threads = settings.n_threads_batch = 2
    settings.type_k = settings.type_v = 0
    settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = api.llama_init_from_model(model, settings)
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert api.llama_decode(context, batch) == 0
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    found = np.ctypeslib.as_array(api.llama_get_logits(context), (len(tokens), size)).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return found
