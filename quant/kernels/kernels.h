// Encoders of ggml's quantization types that give the same bytes as ggml_quantize_chunk. Plain C,
// loaded by ctypes.
#pragma once
#include <stdbool.h>
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

// The token with the largest of the `vocabulary` logits that logits_of(context, output) returns
// (llama_get_logits_ith); -1 if a logit is NaN, -2 if several are the largest, -3 if there are no
// logits or no such level.
typedef float *(*LogitsOf)(void *context, int32_t output);
KERNELS_API int64_t kernels_likeliest(int level, LogitsOf logits_of, void *context, int32_t output,
                                      int64_t vocabulary);

// A ggml_backend_sched_eval_callback that awaits no node: where `wanted` is set, it clears it and
// leads the next large block that this thread takes from glibc's malloc to a cache line, or `past`
// bytes past one, a multiple of 16.
typedef struct {
    int32_t wanted, past;
} WorkAlignment;
KERNELS_API bool kernels_align_work(void *node, bool ask, void *alignment);

// GPTQ: a strip of columns of a block, for some rows. Arrays are [column][row], `stride` numbers
// from one column to the next. Columns stand in the order in which they are chosen.
typedef struct {
    int64_t rows, stride;         // rows: a multiple of 16
    int64_t columns;              // of the strip
    int64_t size;                 // floats from one row of upper and unit to the next
    const float *weights;         // of the strip
    const float *targets;         // corrected for all columns before the strip
    const float *upper, *unit;    // R, and R with every column divided by its diagonal
    const int32_t *groups;        // of each group of the strip: its number in the tensor's order
    float *errors;                // weights - values
    double *loss;                 // [row]: what the strip adds to e R RT eT is added
} GptqStrip;

// Scales or minimums: value * half is the factor. whole: integers from low to high; else the value
// is a half itself.
typedef struct {
    int32_t whole, low, high, sign;
    const float *half; // [group][row]
    float *value;      // [group][row], where the search starts and what it found
} GptqScale;

// A scalar type. levels: the 16 of a table, ascending, or null for the whole numbers low ... high.
typedef struct {
    int32_t group, with_min, low, high;
    int32_t code_of_zero; // of whole numbers; codes are bytes
    const float *levels;
    GptqScale scale, min;
    uint8_t *codes; // [column in the tensor's order][row]
} GptqScalar;

// A type with codewords. shifted: 0, or for how many columns one bit moves a codeword up or down
// by `shift`; where it is 0 that bit is a minus sign of each column, an even number of them in
// eight columns where `even`.
typedef struct {
    int32_t group, dims, words, most_scale, even, shifted;
    float unit, shift;
    const float *table; // [dim][word]
    const float *d;     // [group][row]
    int32_t *scale;     // [group][row], where the search starts and what it found
    int32_t *index;     // [codeword in the tensor's order][row]
    int32_t *bits;      // [eight columns][row]: signs, or the shift as 0 or 1
    float *scratch;     // kernels_gptq_scratch floats, of this thread alone
} GptqCodebook;
KERNELS_API int64_t kernels_gptq_scratch(int level, const GptqCodebook *type);

// Choose the codes of a strip. Returns 0, or -1 if there is no such level.
KERNELS_API int kernels_gptq_scalar(int level, const GptqStrip *strip, const GptqScalar *type);
KERNELS_API int kernels_gptq_codebook(int level, const GptqStrip *strip, const GptqCodebook *type);

// Some bits of a number: bits `at` and up of numbers[item] are written from bit `shift` of the
// little-endian word of `word` bytes at `byte` of a block.
typedef struct {
    int32_t item, byte, word, bits, shift, at;
} FieldPart;
KERNELS_API void kernels_write_field(uint8_t *blocks, int64_t count, int64_t block_bytes,
                                     const FieldPart *parts, int64_t n_parts,
                                     const int32_t *numbers, int64_t n_numbers);

#ifdef __cplusplus
}
#endif
