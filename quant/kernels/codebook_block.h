// One block of the five types with signs apart: choose among the trials, then search what is left
// to search.

// The trial with the best score, -1 if none is better than zero. Lanes are trials; each sum runs
// over the weights in order; the choice is a scalar loop in the original order.
template <int D, int N, int NT>
INLINE int best_trial(const float *x, const float *w, const uint32_t (*levels)[PADDED],
                      float *scale) {
    constexpr int VECTORS_OF_TRIALS = (NT + W - 1) / W;
    alignas(64) float sum_qx[VECTORS_OF_TRIALS * W], sum_q2[VECTORS_OF_TRIALS * W], wx[N];
    F qx[VECTORS_OF_TRIALS], q2[VECTORS_OF_TRIALS];
    for (int i = 0; i < N; i += 8)
        Avx2::store(wx + i, Avx2::mul(Avx2::load(w + i), Avx2::load(x + i)));
    for (int v = 0; v < VECTORS_OF_TRIALS; ++v)
        qx[v] = q2[v] = V::set1(0);
    static const float values4[4] = {1, 3, 5, 5}, values8[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    const F values = D == 8 ? V::tab4(values4) : V::tab8(values8);
    for (int k = 0; k < N / D; ++k) {
#pragma GCC unroll 8
        for (int i = 0; i < D; ++i) {
            const F wv = V::set1(w[k * D + i]), wxv = V::set1(wx[k * D + i]);
            for (int v = 0; v < VECTORS_OF_TRIALS; ++v) {
                const I packed = V::iload(levels[k] + v * W);
                const F q = D == 8 ? V::lut4(values, V::shrv(packed, 2 * i))
                                   : V::lut8(values, V::shrv(packed, 8 * i));
                qx[v] = V::add(qx[v], V::mul(wxv, q));
                q2[v] = V::add(q2[v], V::mul(V::mul(wv, q), q));
            }
        }
    }
    for (int v = 0; v < VECTORS_OF_TRIALS; ++v)
        V::store(sum_qx + v * W, qx[v]), V::store(sum_q2 + v * W, q2[v]);
    float best = 0;
    int chosen = -1;
    for (int t = 0; t < NT; ++t)
        if (sum_q2[t] > 0 && sum_qx[t] * sum_qx[t] > best * sum_q2[t]) {
            *scale = sum_qx[t] / sum_q2[t];
            best = *scale * sum_qx[t];
            chosen = t;
        }
    return chosen;
}
template <int D, int N>
INLINE void refit_scale(const float *x, const float *w, const uint32_t *levels, float *scale) {
    float qx[N], q2[N]; // terms first, then the sums in order: the products vectorize
    for (int i = 0; i < N; ++i) {
        const float q = (float)(2 * level_of(D, levels[i / D], i % D) + 1);
        qx[i] = w[i] * x[i] * q;
        q2[i] = w[i] * q * q;
    }
    float sum_qx = 0, sum_q2 = 0;
    for (int i = 0; i < N; ++i)
        sum_qx += qx[i], sum_q2 += q2[i];
    if (sum_q2 > 0)
        *scale = sum_qx / sum_q2;
}

// The point of a group at one scale, which may come out so small that nearest_int wraps. near: as
// in points_of_trials.
INLINE int point8(const Codebook &book, const float *x, float inverse, bool *near) {
    const __m256 sign = Avx2::set1(-0.f), one = Avx2::set1(1),
                 p = Avx2::mul(Avx2::set1(inverse), Avx2::load(x));
    const __m256i n = nearest_ints<Avx2>(Avx2::mul(Avx2::set1(0.5f), Avx2::sub(p, one)));
    const unsigned above_0 = Avx2::bits(Avx2::asF(_mm256_cmpgt_epi32(n, Avx2::iset1(0))));
    const unsigned above_1 = Avx2::bits(Avx2::asF(_mm256_cmpgt_epi32(n, Avx2::iset1(1))));
    const unsigned levels = book.spread[above_0] + book.spread[above_1];
    const __m256 distance =
        Avx2::andnot(sign, Avx2::sub(Avx2::andnot(sign, Avx2::sub(p, Avx2::set1(3))), one));
    *near = Avx2::bits(Avx2::lt(distance, Avx2::set1(1e-4f))) ||
            Avx2::bits(Avx2::gt(Avx2::andnot(sign, p), Avx2::set1(1e6f)));
    return book.base3[levels & 255] + 81 * book.base3[levels >> 8];
}
INLINE int point4(const float *x, float inverse, bool *near) {
    int point = 0;
    *near = false;
    for (int i = 3; i >= 0; --i) {
        const float v = 0.5f * (inverse * x[i] - 1);
        const int l = nearest_int(v);
        const float e = v - (float)l;
        if (!(e < 0.4999f && e > -0.4999f && v < 1e6f && v > -1e6f))
            *near = true;
        point = point << 3 | clamp(l, 0, 7);
    }
    return point;
}
// The codeword for a group at one scale; false: nothing found.
template <int D>
INLINE bool search_point(const Codebook &book, const float *x, const float *w, float scale,
                         float inverse, uint32_t *levels) {
    bool near;
    const int point = D == 8 ? point8(book, x, inverse, &near) : point4(x, inverse, &near);
    const Candidates &c = book.candidates[near ? FULL : PRUNED];
    const CandidateList list = c.of_point[point];
    if (!list.count) {
        *levels = levels_from_code(D, book.code_of_point[point]);
        return true;
    }
    const Best best = search_list<D>(c, list, x, w, scale);
    *levels = D == 8 ? levels_from_nibbles(best.item) : best.item;
    return best.distance < __FLT_MAX__;
}

// Which groups of the best trial are searched again at its own scale.
enum Again {
    NOT_CODEWORDS, // those whose point was not a codeword (iq2_xs, iq2_s, iq3_xxs)
    ALL,           // all (iq2_xxs)
    ALL_OR_NONE    // all if the point of any was not a codeword (iq3_s)
};
template <Again AGAIN, int GROUPS>
INLINE unsigned groups_again(int trial, const uint32_t *codewords) {
    constexpr unsigned every = (1u << GROUPS) - 1;
    if (AGAIN == ALL || (AGAIN == ALL_OR_NONE && trial < 0))
        return every;
    if (trial < 0)
        return 0;
    unsigned off = 0;
    for (int k = 0; k < GROUPS; ++k)
        off |= (~codewords[k] >> trial & 1) << k;
    return AGAIN == ALL_OR_NONE && off ? every : off;
}

// x: magnitudes, some negated where an even number of signs forced it; low: the least of them.
// largest: what the steps of the trials divide. Gives the codewords of the groups and the scale;
// false: ggml has to encode the row.
template <int D, int N, int NT, Again AGAIN>
INLINE bool encode_block(const Codebook &book, const float *steps, float largest, float low,
                         float start_scale, const float *x, const float *w, int *codewords,
                         float *scale_out) {
    constexpr int GROUPS = N / D;
    TrialScales trials;
    make_trials<D, NT>(steps, largest, trials);
    if (low * trials.inverse[NT - 1] < -4e6f)
        return false;          // nearest_int would wrap
    alignas(64) float root[N]; // ggml weighs distances by the root of the weights
    for (int i = 0; i < N; i += 8)
        Avx2::store(root + i, Avx2::sqrt(Avx2::load(w + i)));
    alignas(64) uint32_t levels[GROUPS][PADDED];
    uint32_t direct[GROUPS], chosen[GROUPS];
    for (int k = 0; k < GROUPS; ++k)
        if (!search_trials<D, NT>(book, x + D * k, root + D * k, trials, levels[k], direct + k))
            return false;
    float scale = start_scale;
    const int trial = best_trial<D, N, NT>(x, w, levels, &scale);
    for (int k = 0; k < GROUPS; ++k)
        chosen[k] = trial < 0 ? 0 : levels[k][trial];
    const unsigned again = groups_again<AGAIN, GROUPS>(trial, direct);
    if (again && scale > 0) {
        const float inverse = 1 / scale;
        if (!(inverse < 1e30f))
            return false;
        for (int k = 0; k < GROUPS; ++k)
            if (again >> k & 1 &&
                !search_point<D>(book, x + D * k, root + D * k, scale, inverse, chosen + k))
                return false;
        refit_scale<D, N>(x, w, chosen, &scale);
    }
    if (scale != scale)
        return false;
    for (int k = 0; k < GROUPS; ++k)
        if ((codewords[k] = codeword_of(book, D, chosen[k])) < 0)
            return false;
    *scale_out = scale;
    return true;
}

// The steps of the trials: top + k * step for k around 0, in ggml's order; the last repeats to fill
// the vectors.
template <int NT>
struct Steps {
    alignas(64) float value[PADDED];
    Steps(int top, float step) {
        for (int t = 0; t < PADDED; ++t)
            value[t] = top + ((t < NT ? t : NT - 1) - NT / 2) * step;
    }
};

// Magnitudes of 8 weights and their minus signs as bits. EVEN: the number of signs is even; if it
// is not, the weight for which that costs least is negated.
template <bool EVEN>
INLINE unsigned take_signs(const float *x, const float *w, float *magnitudes) {
    const __m256 v = Avx2::load(x), negative = Avx2::lt(v, Avx2::set1(0));
    unsigned signs = Avx2::bits(negative);
    Avx2::store(magnitudes, Avx2::sel(negative, Avx2::sub(Avx2::set1(-0.f), v), v));
    if (EVEN && (__builtin_popcount(signs) & 1)) {
        const __m256 cost = Avx2::mul(Avx2::mul(Avx2::load(w), v), v);
        const int i =
            __builtin_ctz(Avx2::bits(Avx2::eq(cost, Avx2::set1(Avx2::hmin(cost)))) | 0x100);
        if (i < 8)
            magnitudes[i] = -magnitudes[i];
        signs ^= 1u << i;
    }
    return signs;
}
template <bool EVEN, int GROUPS_OF_8>
INLINE void take_all_signs(const float *x, const float *w, float *magnitudes, unsigned *signs) {
    for (int k = 0; k < GROUPS_OF_8; ++k)
        signs[k] = take_signs<EVEN>(x + 8 * k, w + 8 * k, magnitudes + 8 * k);
}
// 4-bit levels of the blocks' scales: d * (2 * level + 1) comes nearest.
INLINE int scale_level(float inverse, float scale, int top) {
    return clamp(nearest_int(0.5f * (inverse * scale - 1)), 0, top);
}
