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
