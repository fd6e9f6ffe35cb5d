// q3_K and q6_K: super-blocks of 256 weights, 16 sub-blocks with a scale each and no minimum.

// What the first search gives for as many super-blocks as the second has lanes.
struct Scaled {
    float scale[BATCH][16], sum_w[BATCH][16];
    alignas(32) uint8_t levels[BATCH][256];
};
template <class Search, class Weights>
INLINE bool search_sub_blocks(Scaled &s, Batch<16> &b, const float *x, int count, Search search,
                              Weights weights) {
    constexpr int SUPER = BATCH / 16;
    for (int g = 0; g < count; g += SUPER) {
        const int some = count - g < SUPER ? count - g : SUPER;
        const bool filled =
            fill<16>(b, x + 256 * g, some, [&](int k, float *w) __attribute__((always_inline)) {
                if (!weights(g + k, w))
                    return false;
                for (int j = 0; j < 16; ++j) {
                    float sum = 0;
                    for (int i = 0; i < 16; ++i)
                        sum += w[16 * j + i];
                    s.sum_w[g + k][j] = sum;
                }
                return true;
            });
        if (!filled)
            return false;
        search(b);
        memcpy(s.scale[g], b.scale, sizeof(float) * 16 * some);
        memcpy(s.levels[g], b.levels, 256 * some);
    }
    return true;
}
// The scale of largest magnitude, the first of equals.
INLINE float largest_scale(const float *scales) {
    float amax = 0, max = 0;
    for (int j = 0; j < 16; ++j)
        if (absolute(scales[j]) > amax)
            amax = absolute(scales[j]), max = scales[j];
    return max;
}

// ---- q3_K

// scales: levels 0 ... 63 of the sub-blocks
INLINE void pack_q3_k(const float *x, uint8_t *y, float d, const uint8_t *scales, uint8_t *levels) {
    uint8_t *high = y, *low = y + 32, *packed = y + 96;
    memset(y, 0, 32);
    memset(packed, 0, 12);
    for (int j = 0; j < 16; ++j) {
        packed[j % 8] |= (uint8_t)((scales[j] & 15) << (j < 8 ? 0 : 4));
        packed[8 + j % 4] |= (uint8_t)(scales[j] >> 4 << 2 * (j / 4));
    }
    d = store_half(y + 108, d);
    for (int j = 0; j < 16; ++j) {
        const float scale = d * (scales[j] - 32);
        if (scale)
            to_levels<16>(x + 16 * j, 0.f, scale, -4, 3, levels + 16 * j);
    }
    for (int j = 0; j < 256; ++j)
        high[j % 32] |= (uint8_t)(levels[j] >> 2 << j / 32);
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *l = levels + 128 * half + i;
            low[32 * half + i] =
                (uint8_t)((l[0] & 3) | (l[32] & 3) << 2 | (l[64] & 3) << 4 | (l[96] & 3) << 6);
        }
}
// With importance the scales are searched like weights: lanes are super-blocks, weights the sums of
// weights.
INLINE void q3_k_scales_searched(const Scaled &s, Batch<16> &b, int count) {
    for (int k = 0; k < BATCH; ++k) {
        if (k < count)
            b.put(k, s.scale[k], s.sum_w[k]);
        else
            b.put_zeros(k);
    }
    search_scales<16, 32>(b);
}
INLINE float q3_k_scales_by_largest(const float *scales, uint8_t *levels) {
    const float max = largest_scale(scales);
    if (!max) {
        memset(levels, 0, 16);
        return 0.f;
    }
    const float inverse = -32.f / max;
    for (int j = 0; j < 16; ++j)
        levels[j] = (uint8_t)(clamp((int8_t)nearest_int(inverse * scales[j]), -32, 31) + 32);
    return 1 / inverse;
}
bool rows_q3_k(const Codebook *, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    const int64_t in_row = n / 256, total = rows * in_row;
    static thread_local Batch<16> b;
    static thread_local Scaled s;
    static thread_local BlockSums sums;
    for (int64_t g = 0; g < total; g += BATCH) {
        const int count = total - g < BATCH ? (int)(total - g) : BATCH;
        const float *xg = x + g * 256;
        const auto weights = [&](int k, float *w) __attribute__((always_inline)) {
            const float sum = sums.of(xg + 256 * k, g + k, total, 256);
            if (!trusted(sum, importance))
                return false;
            if (importance)
                weigh<256>(xg + 256 * k, importance + (g + k) % in_row * 256, 2 * sum / 256, w);
            else
                memset(w, 0, 256 * sizeof(float)); // the search squares the weights itself
            return true;
        };
        const auto search = [&](Batch<16> &batch) {
            if (importance)
                search_scales<16, 4>(batch);
            else
                descend_scales<16, 4>(batch);
        };
        if (!search_sub_blocks(s, b, xg, count, search, weights))
            return false;
        if (importance)
            q3_k_scales_searched(s, b, count);
        for (int k = 0; k < count; ++k) {
            float d = b.scale[k];
            if (!importance)
                d = q3_k_scales_by_largest(s.scale[k], b.levels[k]);
            pack_q3_k(xg + 256 * k, y + (g + k) * 110, d, b.levels[k], s.levels[k]);
        }
    }
    return true;
}

// ---- q6_K: weights are the importance itself, or x^2

INLINE void pack_q6_k(const float *x, uint8_t *y, const float *scales, uint8_t *levels) {
    const float max = largest_scale(scales);
    memset(y, 0, 210);
    if (absolute(max) < EMPTY)
        return;
    int8_t *packed = (int8_t *)y + 192;
    const float inverse = -128.f / max, d = store_half(y + 208, 1 / inverse);
    for (int j = 0; j < 16; ++j) {
        const int l = nearest_int(inverse * scales[j]);
        packed[j] = (int8_t)(l < 127 ? l : 127);
        const float scale = d * packed[j];
        if (scale)
            to_levels<16>(x + 16 * j, 0.f, scale, -32, 31, levels + 16 * j);
    }
    for (int half = 0; half < 2; ++half) {
        uint8_t *low = y + 64 * half, *high = y + 128 + 32 * half;
        for (int i = 0; i < 32; ++i) {
            const uint8_t *l = levels + 128 * half + i;
            low[i] = (uint8_t)((l[0] & 15) | (l[64] & 15) << 4);
            low[32 + i] = (uint8_t)((l[32] & 15) | (l[96] & 15) << 4);
            high[i] = (uint8_t)(l[0] >> 4 | l[32] >> 4 << 2 | l[64] >> 4 << 4 | l[96] >> 4 << 6);
        }
    }
}
bool rows_q6_k(const Codebook *, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    const int64_t in_row = n / 256, total = rows * in_row;
    static thread_local Batch<16> b;
    static thread_local BlockSums sums;
    constexpr int SUPER = BATCH / 16;
    for (int64_t g = 0; g < total; g += SUPER) {
        const int count = total - g < SUPER ? (int)(total - g) : SUPER;
        const float *xg = x + g * 256;
        const bool filled =
            fill<16>(b, xg, count, [&](int k, float *w) __attribute__((always_inline)) {
                if (!trusted(sums.of(xg + 256 * k, g + k, total, 256), importance))
                    return false;
                if (importance)
                    memcpy(w, importance + (g + k) % in_row * 256, 256 * sizeof(float));
                else
                    weigh<256>(xg + 256 * k, nullptr, 0.f, w);
                return true;
            });
        if (!filled)
            return false;
        search_scales<16, 32>(b);
        for (int k = 0; k < count; ++k)
            pack_q6_k(xg + 256 * k, y + (g + k) * 210, b.scale + 16 * k, &b.levels[16 * k][0]);
    }
    return true;
}
