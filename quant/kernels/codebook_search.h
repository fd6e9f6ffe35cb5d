// The search among codewords that iq2_xxs, iq2_xs, iq2_s, iq3_xxs and iq3_s share: blocks of 16 or
// 32 weights with their signs apart, in groups of 8 (D == 8) or 4 (D == 4) that a codeword encodes.
// Values of levels are 1, 3, 5 ...
//
// A block tries 13 to 31 scales. For each, its groups are rounded to points, and points that are no
// codewords are replaced by the best of their candidates (codebook.h). Then sums over the block
// give the trial's own best scale and score.
//
// Scales of neighbouring trials differ little: a group sees 2 to 5 different points in all its
// trials. Trials of such a run share their list of candidates, so lanes are the trials of a run;
// "the first minimum" is a plain `<`.

struct Best {
    uint32_t item; // packed as in Candidates
    float distance;
};
INLINE Best first_minimum(__m256 best, __m256i item) {
    alignas(32) uint32_t items[8];
    Avx2::istore(items, item);
    const float distance = Avx2::hmin(best);
    const unsigned lanes = Avx2::bits(Avx2::eq(best, Avx2::set1(distance)));
    return {items[__builtin_ctz(lanes | 0x80)], distance};
}

// Search one list, lanes are candidates. 8 dimensions: terms[8*i + level] of dimension i.
INLINE Best search_list8(const uint32_t *packed, int vectors, const float *terms) {
    __m256 best = Avx2::set1(__FLT_MAX__);
    __m256i item = Avx2::iload(packed);
    for (int v = 0; v < vectors; ++v, packed += LANES) {
        // the nibbles of even dimensions by loads at byte offsets, those of odd ones by a shift;
        // lut4 sees two bits
        const char *p = (const char *)packed;
        const __m256i all = Avx2::iload(p);
        __m256 d = Avx2::set1(0);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair) {
            const __m256i even = Avx2::iload(p + pair), odd = Avx2::shr<4>(even);
            const __m256 term = Avx2::lut4(Avx2::tab4(terms + 16 * pair), even);
            d = pair ? Avx2::add(d, term) : term;
            d = Avx2::add(d, Avx2::lut4(Avx2::tab4(terms + 16 * pair + 8), odd));
        }
        item = Avx2::seli(Avx2::lt(d, best), all, item);
        best = Avx2::min(d, best);
    }
    return first_minimum(best, item);
}
INLINE Best search_list4(const uint32_t *packed, int vectors, const float *terms) {
    __m256 best = Avx2::set1(__FLT_MAX__);
    __m256i item = Avx2::iload(packed);
    const __m256 t0 = Avx2::tab8(terms), t1 = Avx2::tab8(terms + 8), t2 = Avx2::tab8(terms + 16),
                 t3 = Avx2::tab8(terms + 24);
    for (int v = 0; v < vectors; ++v, packed += LANES) {
        const char *p = (const char *)packed;
        const __m256i all = Avx2::iload(p);
        __m256 d = Avx2::add(Avx2::lut8(t0, all), Avx2::lut8(t1, Avx2::iload(p + 1)));
        d = Avx2::add(d, Avx2::lut8(t2, Avx2::iload(p + 2)));
        d = Avx2::add(d, Avx2::lut8(t3, Avx2::iload(p + 3)));
        item = Avx2::seli(Avx2::lt(d, best), all, item);
        best = Avx2::min(d, best);
    }
    return first_minimum(best, item);
}
// w * (scale * value - x)^2 of every level: terms[8*i + level]
template <int D>
INLINE void level_terms(const float *x, const float *w, float scale, __m256 values, float *terms) {
    const __m256 q = Avx2::mul(Avx2::set1(scale), values);
    for (int i = 0; i < D; ++i) {
        const __m256 d = Avx2::sub(q, Avx2::set1(x[i]));
        Avx2::store(terms + 8 * i, Avx2::mul(Avx2::mul(Avx2::set1(w[i]), d), d));
    }
}
template <int D>
INLINE Best search_list(const Candidates &c, const CandidateList &list, const float *x,
                        const float *w, float scale) {
    alignas(32) float terms[64];
    const __m256 values =
        D == 8 ? _mm256_setr_ps(1, 3, 5, 5, 1, 3, 5, 5) : _mm256_setr_ps(1, 3, 5, 7, 9, 11, 13, 15);
    level_terms<D>(x, w, scale, values, terms);
    return D == 8 ? search_list8(c.packed + list.packed, list.vectors, terms)
                  : search_list4(c.packed + list.packed, list.vectors, terms);
}

// Levels of a group in one integer: 2 bits each (8 dimensions) or a byte each (4), as
// Codebook::levels_of.
INLINE uint32_t levels_from_nibbles(uint32_t c) {
    c &= 0x33333333;
    c = (c | c >> 2) & 0x0f0f0f0f;
    c = (c | c >> 4) & 0x00ff00ff;
    return (c | c >> 8) & 0xffff;
}
INLINE uint32_t levels_from_code(int dims, uint32_t c) { // of Codebook::code_of_point
    return dims == 8 ? c : (c & 7) | (c & 0x38) << 5 | (c & 0x1c0) << 10 | (c & 0xe00) << 15;
}
INLINE int level_of(int dims, uint32_t levels, int i) {
    return dims == 8 ? levels >> 2 * i & 3 : levels >> 8 * i & 7;
}
INLINE int codeword_of(const Codebook &book, int dims, uint32_t levels) {
    if (dims == 8)
        return book.index_of_point[book.base3[levels & 255] + 81 * book.base3[levels >> 8]];
    levels = (levels & 0x00070007) | (levels >> 5 & 0x00380038);
    return book.index_of_point[(levels & 0x3f) | levels >> 10];
}

// ---- all trials of one group

constexpr int TRIALS = 32;         // at most
constexpr int PADDED = TRIALS + W; // vectors are stored past the last trial

struct Run {
    int first, last;
}; // of trials with the same point

// The best candidate for every trial of a run. False if the weights left no distance below FLT_MAX.
template <class T>
INLINE bool search_run8(const Codebook &book, const uint16_t *members, int count, const float *x,
                        const float *w, const float *scales, Run run, uint32_t *levels) {
    typedef typename T::F TF;
    bool found = true;
    for (int t = run.first; t <= run.last; t += T::W) {
        alignas(64) float terms[24 * T::W]; // [dimension][level][trial]
        const TF s1 = T::load(scales + t), s3 = T::mul(s1, T::set1(3)), s5 = T::mul(s1, T::set1(5));
        for (int i = 0; i < 8; ++i) {
            const TF xv = T::set1(x[i]), wv = T::set1(w[i]);
            const TF d1 = T::sub(s1, xv), d3 = T::sub(s3, xv), d5 = T::sub(s5, xv);
            T::store(terms + (3 * i) * T::W, T::mul(T::mul(wv, d1), d1));
            T::store(terms + (3 * i + 1) * T::W, T::mul(T::mul(wv, d3), d3));
            T::store(terms + (3 * i + 2) * T::W, T::mul(T::mul(wv, d5), d5));
        }
        TF best = T::set1(__FLT_MAX__);
        typename T::I item = T::iset1(0);
        for (int j = 0; j < count; ++j) {
            const uint8_t *o = book.offset8[members[j]];
            constexpr int K = T::W / 4;
            TF d = T::add(T::load(terms + K * o[0]), T::load(terms + K * o[1]));
#pragma GCC unroll 6
            for (int i = 2; i < 8; ++i)
                d = T::add(d, T::load(terms + K * o[i]));
            item = T::seli(T::lt(d, best), T::iset1((int)book.levels_of[members[j]]), item);
            best = T::min(d, best);
        }
        T::istore(levels + t, item);
        const int left = run.last - t + 1;
        const unsigned live = left >= T::W ? (1u << T::W) - 1 : (1u << left) - 1;
        found &= (T::bits(T::lt(best, T::set1(__FLT_MAX__))) & live) == live;
    }
    return found;
}
// products: scale * value of [level][64 trials]
template <class T>
INLINE bool search_run4(const Codebook &book, const uint16_t *members, int count, const float *x,
                        const float *w, const float *products, Run run, uint32_t *levels) {
    typedef typename T::F TF;
    bool found = true;
    const TF x0 = T::set1(x[0]), x1 = T::set1(x[1]), x2 = T::set1(x[2]), x3 = T::set1(x[3]);
    const TF w0 = T::set1(w[0]), w1 = T::set1(w[1]), w2 = T::set1(w[2]), w3 = T::set1(w[3]);
    for (int t = run.first; t <= run.last; t += T::W) {
        TF best = T::set1(__FLT_MAX__);
        typename T::I item = T::iset1(0);
        for (int j = 0; j < count; ++j) {
            const uint16_t *o = book.offset4[members[j]];
            // ggml subtracts the other way round: the sign cancels in the square
            const TF d0 = T::sub(x0, T::load(products + t + o[0])),
                     d1 = T::sub(x1, T::load(products + t + o[1]));
            const TF d2 = T::sub(x2, T::load(products + t + o[2])),
                     d3 = T::sub(x3, T::load(products + t + o[3]));
            TF d = T::add(T::mul(T::mul(w0, d0), d0), T::mul(T::mul(w1, d1), d1));
            d = T::add(d, T::mul(T::mul(w2, d2), d2));
            d = T::add(d, T::mul(T::mul(w3, d3), d3));
            item = T::seli(T::lt(d, best), T::iset1((int)book.levels_of[members[j]]), item);
            best = T::min(d, best);
        }
        T::istore(levels + t, item);
        const int left = run.last - t + 1;
        const unsigned live = left >= T::W ? (1u << T::W) - 1 : (1u << left) - 1;
        found &= (T::bits(T::lt(best, T::set1(__FLT_MAX__))) & live) == live;
    }
    return found;
}

// Trials of a block, for all its groups.
struct TrialScales {
    alignas(64) float inverse[PADDED], scale[PADDED];
    alignas(64) float products[8 * 64 + W]; // D == 4: scale * value of [level][64 trials]
};
// steps: 2 * (levels - 1) + 1 and its neighbours, which divide `largest`
template <int D, int NT>
INLINE void make_trials(const float *steps, float largest, TrialScales &s) {
    for (int t = 0; t < NT; t += W) {
        const F inverse = V::div(V::load(steps + t), V::set1(largest));
        V::store(s.inverse + t, inverse);
        V::store(s.scale + t, V::div(V::set1(1), inverse));
    }
    if (D == 4)
        for (int level = 0; level < 8; ++level)
            for (int t = 0; t < NT; t += W)
                V::store(s.products + 64 * level + t,
                         V::mul(V::load(s.scale + t), V::set1((float)(2 * level + 1))));
}

// The points of a group in all trials. Returns the trials in which a weight is so near to a
// boundary between two levels (1e-4 of a level) that rounding errors of scale and inverse scale
// could put it on the other side: the rule that shortens the lists does not hold there. Callers
// have excluded that nearest_int wraps.
template <int D, int NT>
INLINE uint32_t points_of_trials(const float *x, const float *inverse, int32_t *points) {
    const F sign = V::set1(-0.f), one = V::set1(1);
    uint32_t near = 0;
    for (int t = 0; t < NT; t += W) {
        const F inv = V::load(inverse + t);
        I point = V::iset1(0);
        if (D == 8) {
            // the nearest of 0, 1, 2 to (p - 1) / 2 is (p > 2) + (p >= 4): halves go to even
            F distance = one;
            for (int i = 7; i >= 0; --i) {
                const F p = V::mul(inv, V::set1(x[i]));
                point = V::iadd(point, V::iadd(point, point));
                point = V::inc(V::inc(point, V::gt(p, V::set1(2))), V::ge(p, V::set1(4)));
                distance = V::min(
                    distance, V::andnot(sign, V::sub(V::andnot(sign, V::sub(p, V::set1(3))), one)));
            }
            near |= V::bits(V::lt(distance, V::set1(1e-4f))) << t;
        } else {
            const F magic = V::set1(MAGIC), top = V::set1(MAGIC + 7);
            F error = V::set1(0);
            for (int i = 3; i >= 0; --i) {
                const F v = V::mul(V::set1(0.5f), V::sub(V::mul(inv, V::set1(x[i])), one));
                const F m = V::add(v, magic), clamped = V::min(V::max(m, magic), top);
                point = V::ior(V::shl<3>(point), V::iand(V::asI(clamped), V::iset1(7)));
                error = V::max(error, V::andnot(sign, V::sub(v, V::sub(m, magic))));
            }
            near |= V::bits(V::gt(error, V::set1(0.4999f))) << t;
        }
        V::istore(points + t, point);
    }
    return near;
}
// The codewords of a group in all trials. codewords: the trials whose point is one itself. False:
// nothing found.
template <int D, int NT>
INLINE bool search_trials(const Codebook &book, const float *x, const float *w,
                          const TrialScales &s, uint32_t *levels, uint32_t *codewords) {
    alignas(64) int32_t points[PADDED];
    const uint32_t near = points_of_trials<D, NT>(x, s.inverse, points);
    uint32_t starts = 1; // of runs
    for (int t = 1; t < NT; t += W)
        starts |= V::bits(V::ne(V::iload(points + t), V::iload(points + t - 1))) << t;
    starts &= NT < 32 ? (1u << (NT & 31)) - 1 : ~0u;
    bool found = true;
    *codewords = 0;
    while (starts) {
        Run run;
        run.first = __builtin_ctz(starts);
        starts &= starts - 1;
        run.last = (starts ? __builtin_ctz(starts) : NT) - 1;
        const uint32_t here = (uint32_t)((2ull << run.last) - (1ull << run.first));
        const int point = points[run.first];
        const Candidates &c = book.candidates[near & here ? FULL : PRUNED];
        const CandidateList list = c.of_point[point];
        const uint16_t *members = c.members + list.first;
        const bool narrow = W == 16 && run.last - run.first < 8;
        if (!list.count) {
            const I same = V::iset1((int)levels_from_code(D, book.code_of_point[point]));
            for (int t = run.first; t <= run.last; t += W)
                V::istore(levels + t, same);
            *codewords |= here;
        } else if (D == 8) {
            found &= narrow
                         ? search_run8<Avx2>(book, members, list.count, x, w, s.scale, run, levels)
                         : search_run8<V>(book, members, list.count, x, w, s.scale, run, levels);
        } else {
            found &=
                narrow ? search_run4<Avx2>(book, members, list.count, x, w, s.products, run, levels)
                       : search_run4<V>(book, members, list.count, x, w, s.products, run, levels);
        }
    }
    return found;
}
