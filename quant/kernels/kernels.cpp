// The C interface: dispatch by processor and type, and ggml for the rows that the kernels leave to
// it.
#include "kernels.h"
#include "codebook.h"
#include "types.h"

namespace {
const Codebook *codebooks[TYPES]; // by codebook_type; set under the caller's lock

int codebook_type(int type) { return type == IQ1_M ? IQ1_S : type; }

// How many shells of distance hold the candidates of a type, and whether candidates may be pruned:
// iq1 does not search from the rounded point.
struct Shells {
    int shells;
    bool prune;
};
Shells shells_of(int type) {
    switch (type) {
    case IQ1_S:
    case IQ1_M:
        return {3, false};
    case IQ2_XXS:
    case IQ2_XS:
    case IQ3_XXS:
        return {2, true};
    case IQ2_S:
        return {1, true};
    case IQ3_S:
        return {3, true};
    default:
        return {0, false};
    }
}
// Products of importances and weights stay finite below this.
bool trusted_importance(const float *importance, int64_t n) {
    bool trusted = true;
    if (importance)
        for (int64_t i = 0; i < n; ++i)
            trusted &= importance[i] >= 0 && importance[i] < 1e18f;
    return trusted;
}
// Rows go through in steps of about 16k weights: enough to fill the lanes, and few are encoded
// twice if ggml has to.
int64_t rows_at_a_time(int64_t n) {
    const int64_t rows = n >= 16384 ? 1 : 16384 / n;
    return rows < 64 ? rows : 64; // MAX_ROWS of types_32.h
}
bool needs_importance(int type) {
    return type == IQ1_S || type == IQ2_XXS || type == IQ2_XS;
} // ggml aborts
} // namespace

int kernels_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2"))
        return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return wide ? 2 : 1;
}

int kernels_set_codebook(int type, const int8_t *levels, int count, int dims) {
    if (type < 0 || type >= TYPES || !shells_of(type).shells)
        return -1;
    if (count < 1 || count > (dims == 8 ? 2048 : 512) || (dims != 8 && dims != 4))
        return -1;
    for (int i = 0; i < count * dims; ++i)
        if (levels[i] < 0 || levels[i] >= (dims == 8 ? 3 : 8))
            return -1;
    const Codebook *&book = codebooks[codebook_type(type)];
    const Shells shells = shells_of(type);
    if (!book)
        book = new_codebook(levels, count, dims, shells.shells, shells.prune);
    return book ? 0 : -1;
}

int64_t kernels_encode(int level, int type, const float *x, void *target, int64_t rows,
                       int64_t columns, const float *importance, QuantizeChunk ggml) {
    if (type < 0 || type >= TYPES || level < 1 || level > kernels_level())
        return -1;
    const Encoder encoder = level == 2 ? avx512_encoder(type) : avx2_encoder(type);
    const Codebook *book = codebooks[codebook_type(type)];
    if (!encoder.rows || columns < 1 || columns % encoder.block_weights)
        return -1;
    if ((shells_of(type).shells && !book) || (!importance && needs_importance(type)))
        return -1;
    uint8_t *y = (uint8_t *)target;
    const int64_t row_bytes = columns / encoder.block_weights * encoder.block_bytes,
                  step = rows_at_a_time(columns);
    const bool trusted = trusted_importance(importance, columns);
    int64_t left_to_ggml = 0;
    for (int64_t first = 0; first < rows; first += step) {
        const int64_t count = rows - first < step ? rows - first : step;
        if (trusted && encoder.rows(book, x + first * columns, y + first * row_bytes, count,
                                    columns, importance))
            continue;
        for (int64_t row = first; row < first + count; ++row) {
            const float *xr = x + row * columns;
            uint8_t *yr = y + row * row_bytes;
            if (trusted && encoder.rows(book, xr, yr, 1, columns, importance))
                continue;
            ggml(type, xr, yr, 0, 1, columns, importance);
            ++left_to_ggml;
        }
    }
    return left_to_ggml;
}

int kernels_score(int level, const float *logits, int64_t rows, int64_t vocabulary,
                  const int32_t *targets, double *nll, int64_t *top, float *p, double *log,
                  double *total, double *kld) {
    if (level < 1 || level > kernels_level() || vocabulary < 1)
        return -1;
    const Scoring scoring = {logits, rows, vocabulary, targets, nll, top, p, log, total, kld};
    return (level == 2 ? avx512_score(scoring) : avx2_score(scoring)) ? 0 : -1;
}

int64_t kernels_likeliest(int level, LogitsOf logits_of, void *context, int32_t output,
                          int64_t vocabulary) {
    const float *logits = logits_of(context, output);
    if (!logits || level < 1 || level > kernels_level() || vocabulary < 1)
        return -3;
    return level == 2 ? avx512_likeliest(logits, vocabulary) : avx2_likeliest(logits, vocabulary);
}

int kernels_gptq_scalar(int level, const GptqStrip *strip, const GptqScalar *type) {
    if (level < 1 || level > kernels_level())
        return -1;
    const auto choose = level == 2 ? avx512_gptq_scalar : avx2_gptq_scalar;
    return choose(*strip, *type) ? 0 : -1;
}

int64_t kernels_gptq_scratch(int level, const GptqCodebook *type) {
    if (level < 1 || level > kernels_level())
        return -1;
    return level == 2 ? avx512_gptq_scratch(*type) : avx2_gptq_scratch(*type);
}

int kernels_gptq_codebook(int level, const GptqStrip *strip, const GptqCodebook *type) {
    if (level < 1 || level > kernels_level())
        return -1;
    const auto choose = level == 2 ? avx512_gptq_codebook : avx2_gptq_codebook;
    return choose(*strip, *type) ? 0 : -1;
}

void kernels_write_field(uint8_t *blocks, int64_t count, int64_t block_bytes,
                         const FieldPart *parts, int64_t n_parts, const int32_t *numbers,
                         int64_t n_numbers) {
    for (int64_t b = 0; b < count; ++b, blocks += block_bytes, numbers += n_numbers)
        for (int64_t i = 0; i < n_parts; ++i) {
            const FieldPart &part = parts[i];
            uint32_t mask = ((1u << part.bits) - 1) << part.shift;
            uint32_t bits = (uint32_t)numbers[part.item] >> part.at << part.shift & mask;
            uint8_t *byte = blocks + part.byte;
            *byte = (uint8_t)((*byte & ~mask) | bits);
            for (int k = 1; k < part.word; ++k) {
                bits >>= 8, mask >>= 8;
                byte[k] = (uint8_t)((byte[k] & ~mask) | bits);
            }
        }
}
