// Sums of squares, the weights of the search, and small reductions. Included once per instruction
// set, like all that follows, inside an unnamed namespace with V as the vector class. Every float
// operation and its order are those of ggml's scalar code: no sum is split, only independent sums
// stand side by side.
typedef V::F F;
typedef V::I I;
typedef V::M M;
constexpr int W = V::W;

// Beyond these sums of squares (of a block, or of a row) products may overflow: ggml encodes such
// rows. Without importance the weights of the search are squares of weights.
constexpr float MAX_SUM = 1e30f, MAX_SUM_UNWEIGHTED = 1e16f;
INLINE bool trusted(float sum_of_squares, const float *importance) {
    return sum_of_squares < (importance ? MAX_SUM : MAX_SUM_UNWEIGHTED);
}

// Sums of squares of consecutive blocks. A serial sum waits 3 to 4 cycles for each addition; four
// side by side hide it.
INLINE void sums_of_squares(const float *x, int blocks, int length, float *sums) {
    int b = 0;
    for (; b + 4 <= blocks; b += 4) {
        const float *p0 = x + (int64_t)b * length, *p1 = p0 + length, *p2 = p1 + length,
                    *p3 = p2 + length;
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (int i = 0; i < length; ++i) {
            s0 += p0[i] * p0[i];
            s1 += p1[i] * p1[i];
            s2 += p2[i] * p2[i];
            s3 += p3[i] * p3[i];
        }
        sums[b] = s0, sums[b + 1] = s1, sums[b + 2] = s2, sums[b + 3] = s3;
    }
    for (; b < blocks; ++b) {
        const float *p = x + (int64_t)b * length;
        float s = 0;
        for (int i = 0; i < length; ++i)
            s += p[i] * p[i];
        sums[b] = s;
    }
}
// The sum of squares of block b, taken for many blocks at a time.
struct BlockSums {
    static constexpr int AHEAD = 256;
    float sums[AHEAD];
    float of(const float *x, int64_t b, int64_t blocks, int length) { // x: block b; b: 0, 1, 2 ...
        if (b % AHEAD == 0)
            sums_of_squares(x, (int)(blocks - b < AHEAD ? blocks - b : AHEAD), length, sums);
        return sums[b % AHEAD];
    }
};

// The weights of the search: importance * sqrt(sigma2 + x^2), or, without importance, x^2 (iq2_s:
// plus a share of sigma2).
template <int N>
INLINE void weigh(const float *x, const float *importance, float sigma2, float *w,
                  float share = 0) {
    for (int i = 0; i < N; i += 8) {
        const __m256 v = Avx2::load(x + i), square = Avx2::mul(v, v);
        if (importance)
            Avx2::store(w + i, Avx2::mul(Avx2::load(importance + i),
                                         Avx2::sqrt(Avx2::add(Avx2::set1(sigma2), square))));
        else
            Avx2::store(w + i, Avx2::add(Avx2::set1(share * sigma2), square));
    }
}
INLINE const float *at(const float *importance, int64_t offset) {
    return importance ? importance + offset : nullptr;
}

template <int N>
INLINE void extent(const float *x, float *low, float *high) {
    __m256 l = Avx2::load(x), h = l;
    for (int i = 8; i < N; i += 8) {
        const __m256 v = Avx2::load(x + i);
        l = Avx2::min(l, v);
        h = Avx2::max(h, v);
    }
    *low = Avx2::hmin(l);
    *high = -Avx2::hmin(Avx2::sub(Avx2::set1(-0.f), h));
}

// Integers of nearest_int in lanes, with its wrap beyond ±2^22.
template <class T>
INLINE typename T::I nearest_ints(typename T::F v) {
    const typename T::I bits = T::asI(T::add(v, T::set1(MAGIC)));
    return T::isub(T::iand(bits, T::iset1(0x7fffff)), T::iset1(0x400000));
}
// The same as floats, for |v| < 2^22; never -0.
template <class T>
INLINE typename T::F rounded(typename T::F v) {
    return T::sub(T::add(v, T::set1(MAGIC)), T::set1(MAGIC));
}

// Levels of (x + offset) / d, clamped to low ... high and counted from low.
template <int N>
INLINE void to_levels(const float *x, float offset, float d, int low, int high, uint8_t *levels) {
    for (int i = 0; i < N; i += 8) {
        const __m256 q = Avx2::div(Avx2::add(Avx2::load(x + i), Avx2::set1(offset)), Avx2::set1(d));
        const __m256i l =
            Avx2::imax(Avx2::imin(nearest_ints<Avx2>(q), Avx2::iset1(high)), Avx2::iset1(low));
        const __m256i u = Avx2::isub(l, Avx2::iset1(low));
        const __m128i p =
            _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
        _mm_storel_epi64((__m128i *)(levels + i), _mm_packus_epi16(p, p));
    }
}

// Apply an encoder of one row to all rows.
template <class One>
INLINE bool each_row(One one, const Codebook *book, const float *x, uint8_t *y, int64_t rows,
                     int64_t n, int64_t row_bytes, const float *importance) {
    for (int64_t r = 0; r < rows; ++r)
        if (!one(book, x + r * n, y + r * row_bytes, n, importance))
            return false;
    return true;
}
