// GPTQ of the types with codewords: the scan over all codewords, W rows at once, and the queues
// that bring rows of one pattern together.

// Of W rows: their slopes, and the squares of their patterns.
template <int DIMS>
struct Rows {
    alignas(64) float slope[DIMS][W];
    const float *square[W];
};

// The products of W rows' slopes with the first halves of the codewords, or the second ones.
template <int DIMS>
INLINE void multiply_halves(const Codewords &words, const float (*slope)[W], float *product) {
    constexpr int COLUMNS = DIMS / 4;
    F quarter[2][MAX_QUARTERS];
    for (int i = 0; i < 2; ++i, slope += COLUMNS)
        for (int n = 0; n < MAX_QUARTERS; ++n) {
            quarter[i][n] = V::mul(V::load(slope[0]), V::set1(words.quarter[n][0]));
            if (COLUMNS == 2)
                quarter[i][n] = V::add(
                    quarter[i][n], V::mul(V::load(slope[1]), V::set1(words.quarter[n][1])));
        }
    for (int n = 0; n < words.quarters; ++n)
        for (int m = 0; m < MAX_QUARTERS; ++m, product += W)
            V::store(product, V::add(quarter[0][n], quarter[1][m]));
}

// The slot of the first codeword of the least loss for each of W rows, which stand in lanes; ALIKE:
// all have the squares of the first. The product of a codeword with a row's slopes is the sum of
// those of its halves, which are computed once: what is left of a codeword is its square, a
// subtraction and a minimum. The product of the second half is subtracted once from the minimum of
// four, which is the same, since rounding keeps the order. Which of the four it was is looked up in
// the end.
template <int DIMS, bool ALIKE>
__attribute__((noinline)) void scan(const Codewords &words, const Rows<DIMS> &rows,
                                    int32_t *found) {
    alignas(64) float first[MAX_HALVES * W], second[MAX_HALVES * W];
    multiply_halves<DIMS>(words, rows.slope, first);
    multiply_halves<DIMS>(words, rows.slope + DIMS / 2, second);
    F least = V::set1(__builtin_inff());
    I place = V::iset1(0);
    const float *const square = rows.square[0];
    for (int c = 0; c < words.slots; c += 4) {
        F loss[4];
        if (!ALIKE)
            V::columns(rows.square, c, loss);
        for (int k = 0; k < 4; ++k) {
            if (ALIKE)
                loss[k] = V::set1(square[c + k]);
            loss[k] = V::sub(loss[k], V::load(first + (uint32_t)words.first[c + k]));
        }
        loss[0] = V::min(V::min(loss[0], loss[1]), V::min(loss[2], loss[3]));
        loss[0] = V::sub(loss[0], V::load(second + (uint32_t)words.second[c / 4]));
        place = V::seli(V::lt(loss[0], least), V::iset1(c), place);
        least = V::min(loss[0], least); // no loss that is not a number
    }
    alignas(64) float least_of[W];
    V::store(least_of, least);
    V::istore(found, place);
    for (int lane = 0; lane < W; ++lane) {
        const int c = found[lane];
        const float product = second[words.second[c / 4] + lane];
        unsigned equal = 0; // without branches, which would be taken at random
        for (int k = 0; k < 4; ++k) {
            const float loss = rows.square[lane][c + k] - first[words.first[c + k] + lane];
            equal |= (unsigned)(loss - product <= least_of[lane]) << k;
        }
        found[lane] = c + (equal ? __builtin_ctz(equal) : 0);
    }
}

// Up to W rows to scan, wherever they come from.
template <int DIMS>
struct RowQueue {
    Rows<DIMS> rows;
    int32_t *target[W]; // where the slot goes
    int count;

    bool full() const { return count == W; }
    void add(const float (*slope)[W], const float *square, int lane, int32_t *slot) {
        for (int k = 0; k < DIMS; ++k)
            rows.slope[k][count] = slope[k][lane];
        rows.square[count] = square;
        target[count++] = slot;
    }
    template <bool ALIKE>
    void flush(const Codewords &words) {
        for (int lane = count; lane < W; ++lane)
            rows.square[lane] = rows.square[0];
        alignas(64) int32_t found[W];
        scan<DIMS, ALIKE>(words, rows, found);
        for (int lane = 0; lane < count; ++lane)
            *target[lane] = found[lane];
        count = 0;
    }
};

// A queue for each pattern of signs, and one for what is left of them: W rows of one pattern read
// their squares once instead of W times.
constexpr int MAX_PATTERNS = 128;
template <int DIMS>
struct PatternQueues {
    RowQueue<DIMS> queue[MAX_PATTERNS], rest;

    void clear() {
        for (RowQueue<DIMS> &each : queue)
            each.count = 0;
        rest.count = 0;
    }
    void add(const Codewords &words, int pattern, const float (*slope)[W], const float *square,
             int lane, int32_t *slot) {
        queue[pattern].add(slope, square, lane, slot);
        if (queue[pattern].full())
            queue[pattern].template flush<true>(words);
    }
    void flush(const Codewords &words, int patterns) {
        for (int p = 0; p < patterns; ++p) {
            RowQueue<DIMS> &each = queue[p];
            if (2 * each.count >= W)
                each.template flush<true>(words);
            for (; each.count; --each.count) {
                const int last = each.count - 1;
                rest.add(each.rows.slope, each.rows.square[last], last, each.target[last]);
                if (rest.full())
                    rest.template flush<false>(words);
            }
        }
        if (rest.count)
            rest.template flush<false>(words);
    }
};
