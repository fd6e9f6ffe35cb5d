// The encoders with 16 lanes.
#define KERNELS_AVX512
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq")
#include "codebook.h"
#include "simd.h"
#include "types.h"

namespace {
typedef Avx512 V;
}
#include "encoders.h"

Encoder avx512_encoder(int type) { return encoder_of(type); }
bool avx512_score(const Scoring &rows) { return score_rows(rows); }
int64_t avx512_likeliest(const float *logits, int64_t n) { return only_largest(logits, n); }
bool avx512_gptq_scalar(const GptqStrip &strip, const GptqScalar &type) {
    return choose_scalar(strip, type);
}
int64_t avx512_gptq_scratch(const GptqCodebook &type) { return CodebookCoder::scratch(type); }
bool avx512_gptq_codebook(const GptqStrip &strip, const GptqCodebook &type) {
    return choose_codewords(strip, type);
}
