// The encoders with 8 lanes.
#pragma GCC target("avx2")
#include "codebook.h"
#include "simd.h"
#include "types.h"

namespace {
typedef Avx2 V;
}
#include "encoders.h"

Encoder avx2_encoder(int type) { return encoder_of(type); }
bool avx2_score(const Scoring &rows) { return score_rows(rows); }
int64_t avx2_likeliest(const float *logits, int64_t n) { return only_largest(logits, n); }
bool avx2_gptq_scalar(const GptqStrip &strip, const GptqScalar &type) {
    return choose_scalar(strip, type);
}
int64_t avx2_gptq_scratch(const GptqCodebook &type) { return CodebookCoder::scratch(type); }
bool avx2_gptq_codebook(const GptqStrip &strip, const GptqCodebook &type) {
    return choose_codewords(strip, type);
}
