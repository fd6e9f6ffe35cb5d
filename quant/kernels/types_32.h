// q4_0, q4_1, q5_0, q5_1 and q8_0: blocks of 32 weights. With importance (q8_0 ignores it) levels
// come from the searches, without by rounding.

// ---- packing

// Four vectors of integers to 32 bytes in order.
INLINE __m256i to_bytes(const __m256i *l) {
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(l[0], l[1]), _mm256_packs_epi32(l[2], l[3]));
    return _mm256_permutevar8x32_epi32(
        packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); // packing goes by 128 bits
}
INLINE void put_4_bits(__m256i levels, uint8_t *q) { // the low four: weight i and i + 16 in a byte
    const __m256i low = _mm256_and_si256(levels, _mm256_set1_epi8(15));
    const __m128i second = _mm_slli_epi16(_mm256_extracti128_si256(low, 1), 4);
    _mm_storeu_si128((__m128i *)q, _mm_or_si128(_mm256_castsi256_si128(low), second));
}
INLINE void put_fifth_bits(__m256i levels, uint8_t *q) {
    const uint32_t bits = (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(levels, 3));
    memcpy(q, &bits, 4);
}
template <int BITS>
INLINE void put_levels(__m256i levels, uint8_t *q) {
    if (BITS == 5)
        put_fifth_bits(levels, q);
    put_4_bits(levels, q + (BITS == 5 ? 4 : 0));
}

// ---- with importance: lanes are blocks, sigma2 is the mean square of the row

// put writes one block from its lane. MAX_ROWS: what kernels.cpp gives at a time.
constexpr int MAX_ROWS = 64;
template <class Search, class Put>
INLINE bool searched_rows(const float *x, int64_t rows, int64_t n, const float *importance,
                          Search search, Put put) {
    static thread_local Batch<32> b;
    const int64_t in_row = n / 32, total = rows * in_row;
    float sigma2[MAX_ROWS];
    if (rows > MAX_ROWS)
        return false;
    sums_of_squares(x, (int)rows, (int)n, sigma2);
    for (int64_t r = 0; r < rows; ++r) {
        if (!trusted(sigma2[r], importance))
            return false;
        sigma2[r] /= n;
    }
    for (int64_t g = 0; g < total; g += BATCH) {
        const int count = total - g < BATCH ? (int)(total - g) : BATCH;
        for (int k = 0; k < BATCH; ++k) {
            if (k >= count) {
                b.put_zeros(k);
                continue;
            }
            alignas(64) float w[32];
            const float *block = x + (g + k) * 32;
            weigh<32>(block, importance + (g + k) % in_row * 32, sigma2[(g + k) / in_row], w);
            b.put(k, block, w);
        }
        if (!search(b))
            return false;
        for (int k = 0; k < count; ++k)
            put(g + k, b, k);
    }
    return true;
}
INLINE __m256i load_levels(const uint8_t *levels) {
    return _mm256_loadu_si256((const __m256i *)levels);
}

template <int BITS>
INLINE bool searched_rows_scale(const float *x, uint8_t *y, int64_t rows, int64_t n,
                                const float *importance) {
    const auto search = [](Batch<32> &b) {
        search_scales<32, 1 << (BITS - 1)>(b);
        return true;
    };
    const auto put = [=](int64_t block, const Batch<32> &b, int k) {
        uint8_t *q = y + block * (2 + 4 * BITS);
        store_half(q, b.scale[k]);
        put_levels<BITS>(load_levels(b.levels[k]), q + 2);
    };
    return searched_rows(x, rows, n, importance, search, put);
}
template <int BITS>
INLINE bool searched_rows_affine(const float *x, uint8_t *y, int64_t rows, int64_t n,
                                 const float *importance) {
    const auto search = [](Batch<32> &b) {
        return search_affine<32, (1 << BITS) - 1, false>(b, WITH_IMPORTANCE);
    };
    const auto put = [=](int64_t block, const Batch<32> &b, int k) {
        uint8_t *q = y + block * (4 + 4 * BITS);
        store_half(q, b.scale[k]);
        store_half(q + 2, -b.min[k]);
        put_levels<BITS>(load_levels(b.levels[k]), q + 4);
    };
    return searched_rows(x, rows, n, importance, search, put);
}

// ---- by rounding

constexpr float SMALLEST_RANGE = 1e-30f,
                LARGEST_RANGE = 1e38f; // outside, the inverse of the scale is not a normal number

struct Block32 {
    __m256 v[4];
    void load(const float *x) {
        for (int i = 0; i < 4; ++i)
            v[i] = Avx2::load(x + 8 * i);
    }
};
// (x - min) * inverse + offset, cut to integers, at most top; all are positive.
INLINE __m256i cut_levels(const Block32 &x, float min, float inverse, float offset, int top) {
    __m256i l[4];
    for (int i = 0; i < 4; ++i) {
        const __m256 q = Avx2::mul(Avx2::sub(x.v[i], Avx2::set1(min)), Avx2::set1(inverse));
        l[i] = Avx2::imin(_mm256_cvttps_epi32(Avx2::add(q, Avx2::set1(offset))), Avx2::iset1(top));
    }
    return to_bytes(l);
}
template <int BITS>
INLINE bool rounded_row_scale(const float *x, uint8_t *y, int64_t n) {
    constexpr int HALF = 1 << (BITS - 1);
    for (int64_t b = 0; b < n / 32; ++b, x += 32, y += 2 + 4 * BITS) {
        const float max = largest_weight(x);
        if (max && !(absolute(max) > SMALLEST_RANGE && absolute(max) < LARGEST_RANGE))
            return false;
        const float d = max / -HALF, inverse = d ? 1 / d : 0.f;
        Block32 block;
        block.load(x);
        store_half(y, d);
        put_levels<BITS>(cut_levels(block, 0.f, inverse, HALF + 0.5f, 2 * HALF - 1),
                         y + 2); // x - 0 is x
    }
    return true;
}
// The first of the smallest weights: of zeros the sign counts, which the half keeps.
INLINE float first_smallest(const float *x, const Block32 &block, float *max) {
    float low;
    extent<32>(x, &low, max);
    for (int i = 0; i < 4; ++i) {
        const unsigned equal = Avx2::bits(Avx2::eq(block.v[i], Avx2::set1(low)));
        if (equal)
            return x[8 * i + __builtin_ctz(equal)];
    }
    return low;
}
template <int BITS>
INLINE bool rounded_row_affine(const float *x, uint8_t *y, int64_t n) {
    constexpr int TOP = (1 << BITS) - 1;
    for (int64_t b = 0; b < n / 32; ++b, x += 32, y += 4 + 4 * BITS) {
        Block32 block;
        block.load(x);
        float max;
        const float min = first_smallest(x, block, &max);
        const float range =
            max == min ? 0.f : max - min; // never -0: ggml subtracts a weight from itself
        if (range && !(range > SMALLEST_RANGE && range < LARGEST_RANGE))
            return false;
        const float d = range / TOP, inverse = d ? 1 / d : 0.f;
        store_half(y, d);
        store_half(y + 2, min);
        put_levels<BITS>(cut_levels(block, min, inverse, 0.5f, TOP), y + 4);
    }
    return true;
}
// roundf goes away from zero at halves: adding the float before 0.5 and cutting does the same below
// 2^22.
bool row_q8_0(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *) {
    const __m256 sign = Avx2::set1(-0.f), almost_half = Avx2::set1(0.49999997f);
    for (int64_t b = 0; b < n / 32; ++b, x += 32, y += 34) {
        Block32 block;
        block.load(x);
        __m256 high = Avx2::set1(0);
        for (int i = 0; i < 4; ++i)
            high = Avx2::max(high, Avx2::andnot(sign, block.v[i]));
        const float amax = -Avx2::hmin(Avx2::sub(sign, high));
        if (amax && !(amax > SMALLEST_RANGE && amax < LARGEST_RANGE))
            return false;
        const float d = amax / 127, inverse = d ? 1 / d : 0.f;
        store_half(y, d);
        __m256i l[4];
        for (int i = 0; i < 4; ++i) {
            const __m256 q = Avx2::mul(block.v[i], Avx2::set1(inverse));
            l[i] = _mm256_cvttps_epi32(
                Avx2::add(q, _mm256_or_ps(_mm256_and_ps(sign, q), almost_half)));
        }
        _mm256_storeu_si256((__m256i *)(y + 2), to_bytes(l));
    }
    return true;
}

bool row_q4_0(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *) {
    return rounded_row_scale<4>(x, y, n);
}
bool row_q5_0(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *) {
    return rounded_row_scale<5>(x, y, n);
}
bool row_q4_1(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *) {
    return rounded_row_affine<4>(x, y, n);
}
bool row_q5_1(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *) {
    return rounded_row_affine<5>(x, y, n);
}

bool rows_q4_0(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    if (importance)
        return searched_rows_scale<4>(x, y, rows, n, importance);
    return each_row(row_q4_0, book, x, y, rows, n, n / 32 * 18, nullptr);
}
bool rows_q5_0(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    if (importance)
        return searched_rows_scale<5>(x, y, rows, n, importance);
    return each_row(row_q5_0, book, x, y, rows, n, n / 32 * 22, nullptr);
}
bool rows_q4_1(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    if (importance)
        return searched_rows_affine<4>(x, y, rows, n, importance);
    return each_row(row_q4_1, book, x, y, rows, n, n / 32 * 20, nullptr);
}
bool rows_q5_1(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *importance) {
    if (importance)
        return searched_rows_affine<5>(x, y, rows, n, importance);
    return each_row(row_q5_1, book, x, y, rows, n, n / 32 * 24, nullptr);
}
bool rows_q8_0(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
               const float *) {
    return each_row(row_q8_0, book, x, y, rows, n, n / 32 * 34, nullptr);
}
