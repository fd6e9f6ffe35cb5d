// What all parts of the library share: type numbers, the interface of an encoder, scalar helpers.
#pragma once
#include "kernels.h"
#include <stdint.h>
#include <string.h>

// enum ggml_type of ggml.h, the types encoded here
enum Type {
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    IQ1_M = 29,
    TYPES = 30
};

struct Codebook;
// Encode `rows` rows of n weights. importance: n floats, or null. False: the rows hold something
// the proofs of the kernels do not cover (what was written to y does not count); ggml has to encode
// them.
typedef bool (*EncodeRows)(const Codebook *, const float *x, uint8_t *y, int64_t rows, int64_t n,
                           const float *importance);
struct Encoder {
    EncodeRows rows; // null: no kernel for this type
    int block_weights, block_bytes;
};
// Scoring of rows of logits, see kernels.h; p, log and total are null without a reference.
struct Scoring {
    const float *logits;
    int64_t rows, vocabulary;
    const int32_t *targets;
    double *nll;
    int64_t *top;
    float *p;            // of the reference: written, or read where kld is not null
    double *log, *total; // of the reference
    double *kld;
};
bool avx2_score(const Scoring &rows);
// Signs and their opposites have the same square, so half of the patterns are enough.
static inline int sign_patterns(const GptqCodebook &type) {
    return type.shifted ? 2 : 1 << (type.dims - 1);
}
// Places of codewords in the order of a scan (see Codewords).
constexpr int MAX_QUARTERS = 9, MAX_HALVES = MAX_QUARTERS * MAX_QUARTERS;
static inline int64_t most_slots(const GptqCodebook &type) {
    return (type.words + 3 * MAX_HALVES + 15) / 16 * 16;
}
// Of the squares of a pattern. Not a power of two: rows with different patterns are read together,
// and would share few places of the first cache.
static inline int64_t squares_stride(const GptqCodebook &type) { return most_slots(type) + 16; }
static inline int64_t squares_count(const GptqCodebook &type) {
    return sign_patterns(type) * squares_stride(type);
}
bool avx2_gptq_scalar(const GptqStrip &strip, const GptqScalar &type);
int64_t avx2_gptq_scratch(const GptqCodebook &type);
int64_t avx512_gptq_scratch(const GptqCodebook &type);
bool avx2_gptq_codebook(const GptqStrip &strip, const GptqCodebook &type);
bool avx512_gptq_scalar(const GptqStrip &strip, const GptqScalar &type);
bool avx512_gptq_codebook(const GptqStrip &strip, const GptqCodebook &type);
int64_t avx2_likeliest(const float *logits, int64_t n);
int64_t avx512_likeliest(const float *logits, int64_t n);
bool avx512_score(const Scoring &rows);
Encoder avx2_encoder(int type);
Encoder avx512_encoder(int type);

static inline uint32_t to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }
static inline float absolute(float v) { return from_bits(to_bits(v) & 0x7fffffff); }

// v + MAGIC has the integer nearest to v (half to even) in its lowest 22 bits, for |v| < 2^22.
constexpr float MAGIC = 12582912.f; // 1.5 * 2^23
// ggml's nearest_int. Beyond ±2^22 it wraps, which happens in practice, so this one does too.
static inline int nearest_int(float v) {
    return (int)(to_bits(v + MAGIC) & 0x007fffff) - 0x00400000;
}

// float to half and back, to nearest even, by integer arithmetic: no build needs F16C.
static inline uint16_t to_half(float f) {
    const uint32_t bits = to_bits(f), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00);
    // subnormal: the last place of 0.5 is 2^-24
    if (magnitude < 0x38800000)
        return (uint16_t)(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}
static inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31,
                   mantissa = h & 0x3ff;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        const float f = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}
static inline float store_half(uint8_t *target, float value) { // returns what the half stands for
    const uint16_t half = to_half(value);
    memcpy(target, &half, 2);
    return from_half(half);
}
