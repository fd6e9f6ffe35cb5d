// q2_K, q4_K, q5_K (scale and minimum per sub-block) and q3_K, q6_K (scale only): super-blocks of
// 256 weights.
//
// A batch holds the sub-blocks of as many super-blocks as fill its lanes. With importance, weights
// are importance * sqrt(sigma2 + x^2); without, each type has its own.
constexpr Trials WITH_IMPORTANCE = {-0.9f, 0.05f, 37};

// Fill a batch with sub-blocks of N from `count` super-blocks; `weights` gives the 256 weights of
// one.
template <int N, class Weights>
INLINE bool fill(Batch<N> &b, const float *x, int count, Weights weights) {
    constexpr int PER = 256 / N;
    for (int k = 0; k < BATCH / PER; ++k) {
        if (k >= count) {
            for (int j = 0; j < PER; ++j)
                b.put_zeros(k * PER + j);
            continue;
        }
        alignas(64) float w[256];
        if (!weights(k, w))
            return false;
        for (int j = 0; j < PER; ++j)
            b.put(k * PER + j, x + 256 * k + N * j, w + N * j);
    }
    return true;
}

// ---- scale and minimum

// Weights without importance: |x| for q2_K, the root of the mean square of the sub-block + |x| for
// q4_K and q5_K.
template <int N>
INLINE void absolute_weights(const float *x, float *w) {
    const __m256 sign = Avx2::set1(-0.f);
    for (int j = 0; j < 256 / N; ++j) {
        float sum = 0;
        if (N == 32)
            for (int i = 0; i < N; ++i)
                sum += x[N * j + i] * x[N * j + i];
        const __m256 mean = Avx2::sqrt(Avx2::set1(sum / N));
        for (int i = N * j; i < N * (j + 1); i += 8) {
            const __m256 a = Avx2::andnot(sign, Avx2::load(x + i));
            Avx2::store(w + i, N == 32 ? Avx2::add(mean, a) : a);
        }
    }
}
// Levels of the scales (or minimums) of a super-block without importance: the largest gets the top
// level.
template <int N>
INLINE float scales_by_largest(int top, const float *values, uint8_t *levels) {
    float max = 0;
    for (int j = 0; j < N; ++j)
        max = values[j] > max ? values[j] : max;
    const float inverse = max > 0 ? top / max : 0.f;
    for (int j = 0; j < N; ++j)
        levels[j] = (uint8_t)nearest_int(inverse * values[j]);
    return max > 0 ? max / top : 0.f;
}

// SIGMA: sigma2 in mean squares. pack writes one super-block from its scales, minimums, weights and
// levels.
template <int N, int NMAX, int BYTES, class Pack>
INLINE bool affine_rows(const float *x, uint8_t *y, int64_t rows, int64_t n,
                        const float *importance, float sigma, Trials unweighted, Pack pack) {
    constexpr int PER = 256 / N, SUPER = BATCH / PER;
    const int64_t in_row = n / 256, total = rows * in_row;
    static thread_local Batch<N> b;
    static thread_local BlockSums sums;
    for (int64_t g = 0; g < total; g += SUPER) {
        const int count = total - g < SUPER ? (int)(total - g) : SUPER;
        const float *xg = x + g * 256;
        const bool filled =
            fill<N>(b, xg, count, [&](int k, float *w) __attribute__((always_inline)) {
                const float sum = sums.of(xg + 256 * k, g + k, total, 256);
                if (!trusted(sum, importance))
                    return false;
                if (importance)
                    weigh<256>(xg + 256 * k, importance + (g + k) % in_row * 256, sigma * sum / 256,
                               w);
                else
                    absolute_weights<N>(xg + 256 * k, w);
                return true;
            });
        if (!filled)
            return false;
        if (!(importance ? search_affine<N, NMAX, false>(b, WITH_IMPORTANCE)
                         : search_affine<N, NMAX, N == 16>(b, unweighted)))
            return false;
        for (int k = 0; k < count; ++k) {
            const float *scales = b.scale + k * PER, *mins = b.min + k * PER,
                        *sum_w = b.sum_w + k * PER;
            uint8_t scale_levels[PER], min_levels[PER];
            constexpr int TOP = N == 16 ? 15 : 63;
            float d, m;
            if (importance) {
                if (!positive_scale<PER>(TOP, scales, sum_w, scale_levels, &d))
                    return false;
                if (!positive_scale<PER>(TOP, mins, sum_w, min_levels, &m))
                    return false;
            } else {
                d = scales_by_largest<PER>(TOP, scales, scale_levels);
                m = scales_by_largest<PER>(TOP, mins, min_levels);
            }
            pack(xg + 256 * k, y + (g + k) * BYTES, d, m, scale_levels, min_levels,
                 b.levels + k * PER);
        }
    }
    return true;
}

bool rows_q2_k(const Codebook *, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    const auto pack = [](const float *x, uint8_t *y, float d, float m, const uint8_t *scales,
                         const uint8_t *mins, uint8_t (*levels)[16]) {
        uint8_t *q = y + 16;
        d = store_half(y + 80, d);
        m = store_half(y + 82, m);
        for (int j = 0; j < 16; ++j) {
            y[j] = (uint8_t)(scales[j] | mins[j] << 4);
            const float scale = d * (y[j] & 15);
            if (scale)
                to_levels<16>(x + 16 * j, m * (y[j] >> 4), scale, 0, 3, levels[j]);
        }
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 32; ++i) {
                const uint8_t *l = &levels[0][0] + 128 * half + i;
                q[32 * half + i] = (uint8_t)(l[0] | l[32] << 2 | l[64] << 4 | l[96] << 6);
            }
    };
    return affine_rows<16, 3, 84>(x, y, rows, n, importance, 1.f, {-0.5f, 0.1f, 16}, pack);
}

// Eight 6-bit scales and minimums in 12 bytes.
INLINE void pack_6_bits(uint8_t *s, const uint8_t *scales, const uint8_t *mins) {
    for (int j = 0; j < 4; ++j) {
        s[j] = (uint8_t)(scales[j] | scales[j + 4] >> 4 << 6);
        s[j + 4] = (uint8_t)(mins[j] | mins[j + 4] >> 4 << 6);
        s[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}
INLINE void unpack_6_bits(const uint8_t *s, uint8_t *scales, uint8_t *mins) {
    for (int j = 0; j < 4; ++j) {
        scales[j] = s[j] & 63;
        mins[j] = s[j + 4] & 63;
        scales[j + 4] = (uint8_t)((s[j + 8] & 15) | s[j] >> 6 << 4);
        mins[j + 4] = (uint8_t)(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
}
template <int NMAX>
INLINE bool rows_q45_k(const float *x, uint8_t *y, int64_t rows, int64_t n, const float *importance,
                       Trials unweighted) {
    const auto pack = [=](const float *x, uint8_t *y, float d, float m, uint8_t *scales,
                          uint8_t *mins, uint8_t (*levels)[32]) {
        d = store_half(y, d);
        m = store_half(y + 2, m);
        if (NMAX == 31 || !importance) // levels outside the 6 bits (a byte of -1); q4_K with
                                       // importance keeps them
            for (int j = 0; j < 8; ++j) {
                scales[j] = scales[j] < 63 ? scales[j] : 63;
                mins[j] = mins[j] < 63 ? mins[j] : 63;
            }
        pack_6_bits(y + 4, scales, mins);
        unpack_6_bits(y + 4, scales, mins);
        for (int j = 0; j < 8; ++j) {
            const float scale = d * scales[j];
            if (scale)
                to_levels<32>(x + 32 * j, m * mins[j], scale, 0, NMAX, levels[j]);
        }
        if (NMAX == 15) {
            for (int j = 0; j < 4; ++j)
                for (int i = 0; i < 32; ++i)
                    y[16 + 32 * j + i] = (uint8_t)(levels[2 * j][i] | levels[2 * j + 1][i] << 4);
            return;
        }
        memset(y + 16, 0, 32);
        for (int j = 0; j < 4; ++j)
            for (int i = 0; i < 32; ++i) {
                const int a = levels[2 * j][i], b = levels[2 * j + 1][i];
                y[16 + i] |= (uint8_t)((a >> 4) << 2 * j | (b >> 4) << (2 * j + 1));
                y[48 + 32 * j + i] = (uint8_t)((a & 15) | (b & 15) << 4);
            }
    };
    return affine_rows<32, NMAX, NMAX == 15 ? 144 : 176>(x, y, rows, n, importance, 2.f, unweighted,
                                                         pack);
}
bool rows_q4_k(const Codebook *, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    return rows_q45_k<15>(x, y, rows, n, importance, {-1.f, 0.1f, 21});
}
bool rows_q5_k(const Codebook *, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    return rows_q45_k<31>(x, y, rows, n, importance, {-0.5f, 0.1f, 16});
}
