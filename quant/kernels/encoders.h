// All encoders of one instruction set: V, the vector class, is defined by the unit that includes
// this. Nothing here includes a standard C++ header: an inline function of theirs, compiled for the
// wider instruction set, could be the copy that the linker keeps for everyone.
namespace {
#include "weighting.h"
#include "batch.h"
#include "scale_search.h"
#include "affine_search.h"
#include "positive_scale.h"
#include "codebook_search.h"
#include "codebook_block.h"
#include "ternary_split.h"

#include "scoring.h"

#include "gptq.h"
#include "gptq_scalar.h"
#include "gptq_codewords.h"
#include "gptq_octet.h"
#include "gptq_scan.h"
#include "gptq_codebook.h"

#include "types_k.h"
#include "types_scaled.h"
#include "types_iq4.h"
#include "types_32.h"
#include "types_iq2_iq3.h"
#include "types_iq1_s.h"
#include "types_iq1_m.h"

Encoder encoder_of(int type) {
    switch (type) {
    case Q4_0:
        return {rows_q4_0, 32, 18};
    case Q4_1:
        return {rows_q4_1, 32, 20};
    case Q5_0:
        return {rows_q5_0, 32, 22};
    case Q5_1:
        return {rows_q5_1, 32, 24};
    case Q8_0:
        return {rows_q8_0, 32, 34};
    case Q2_K:
        return {rows_q2_k, 256, 84};
    case Q3_K:
        return {rows_q3_k, 256, 110};
    case Q4_K:
        return {rows_q4_k, 256, 144};
    case Q5_K:
        return {rows_q5_k, 256, 176};
    case Q6_K:
        return {rows_q6_k, 256, 210};
    case IQ1_S:
        return {rows_iq1_s, 256, 50};
    case IQ1_M:
        return {rows_iq1_m, 256, 56};
    case IQ2_XXS:
        return {rows_codebook<Iq2Xxs>, 256, 66};
    case IQ2_XS:
        return {rows_codebook<Iq2Xs>, 256, 74};
    case IQ2_S:
        return {rows_codebook<Iq2S>, 256, 82};
    case IQ3_XXS:
        return {rows_codebook<Iq3Xxs>, 256, 98};
    case IQ3_S:
        return {rows_codebook<Iq3S>, 256, 110};
    case IQ4_NL:
        return {rows_iq4_nl, 32, 18};
    case IQ4_XS:
        return {rows_iq4_xs, 256, 136};
    default:
        return {nullptr, 0, 0};
    }
}
} // namespace
