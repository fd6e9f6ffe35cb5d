// Encoders of ggml's quantization types that give the same bytes as ggml_quantize_chunk. Plain C,
// loaded by ctypes.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define KERNELS_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// ggml_quantize_chunk, which encodes the rows that the proofs of the kernels do not cover.
typedef size_t (*QuantizeChunk)(int type, const float *x, void *y, int64_t start, int64_t rows,
                                int64_t columns, const float *importance);

// The widest instruction set of this processor with kernels: 0 none, 1 AVX2, 2 AVX-512.
KERNELS_API int kernels_level(void);

// Build the tables of an IQ type (not iq4) from its codewords: their levels (0 ... 2, or 0 ... 7
// where a codeword has 4), count
// * dims of them. Must have returned before the type is encoded, and must not run twice at once. 0:
// done, -1: invalid codewords.
KERNELS_API int kernels_set_codebook(int type, const int8_t *levels, int count, int dims);

// Encode like ggml_quantize_chunk from the first row on. level: 1 or 2. importance: `columns`
// floats, or null. Returns the number of rows that ggml encoded, or -1 if there is no kernel for
// this type and level (nothing was written).
KERNELS_API int64_t kernels_encode(int level, int type, const float *x, void *y, int64_t rows,
                                   int64_t columns, const float *importance, QuantizeChunk ggml);

// Score rows of logits, each of `vocabulary` float32: nll = -ln p of the target, top: the first of
// the likeliest tokens. p, log, total and kld are null, or
// - kld is null: what is needed of a reference is written: p (vocabulary of each row, zero where
//   ln p <= -16), log = sum of p ln p, total = sum of p;
// - else these are read, and kld gets log - sum of p ln q, q being the probabilities of the logits.
// Exponentials are float32 of the difference to the largest logit, sums are float64. The result of
// a row depends neither on the level nor on the other rows. Returns 0, or -1 if there is no such
// level.
KERNELS_API int kernels_score(int level, const float *logits, int64_t rows, int64_t vocabulary,
                              const int32_t *targets, double *nll, int64_t *top, float *p,
                              double *log, double *total, double *kld);

// The token with the largest of `vocabulary` float32 logits; -1 if a logit is NaN, -2 if several
// are the largest, -3 if there is no such level.
KERNELS_API int64_t kernels_likeliest(int level, const float *logits, int64_t vocabulary);

#ifdef __cplusplus
}
#endif
