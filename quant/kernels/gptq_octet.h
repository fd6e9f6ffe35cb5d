// GPTQ of the types with codewords: eight columns of the rows of a vector: goals, signs, losses.

// Eight columns of a group: R, its inverse, M = R RT, and the same of each codeword's columns.
struct Octet {
    float upper[8][8], inverse[8][8], metric[8][8];
    float part_inverse[8][8]; // of the diagonal blocks of a codeword's columns
    Squares squares[2];       // of each codeword

    inline void fill(const GptqCodebook &type, const Codewords &words, const float *r,
                     int64_t size, float *tables);
};
static void invert(const float (*upper)[8], int first, int end, float (*inverse)[8]) {
    for (int j = first; j < end; ++j) {
        double column[8];
        for (int i = j; i >= first; --i) {
            double sum = i == j;
            for (int k = i + 1; k <= j; ++k)
                sum -= (double)upper[i][k] * column[k];
            column[i] = sum / upper[i][i];
            inverse[i][j] = (float)column[i];
        }
    }
}
// m = rows first ... end of R times its transpose
static void multiply(const float (*upper)[8], int first, int end, float (*m)[8]) {
    for (int i = first; i < end; ++i)
        for (int j = first; j < end; ++j) {
            double sum = 0;
            for (int k = i > j ? i : j; k < end; ++k)
                sum += (double)upper[i][k] * upper[j][k];
            m[i][j] = (float)sum;
        }
}

// r: R of these columns, in rows of `size`. tables: memory for the squares.
inline void Octet::fill(const GptqCodebook &type, const Codewords &words, const float *r,
                        int64_t size, float *tables) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j)
            upper[i][j] = r[i * size + j];
    invert(upper, 0, 8, inverse);
    multiply(upper, 0, 8, metric);
    for (int first = 0; first < 8; first += type.dims, tables += squares_count(type)) {
        Squares &s = squares[first / type.dims];
        s.type = &type, s.words = &words, s.dims = type.dims, s.patterns = sign_patterns(type),
        s.stride = squares_stride(type), s.table = tables;
        invert(upper, first, first + type.dims, part_inverse);
        float block[8][8];
        multiply(upper, first, first + type.dims, block);
        for (int i = 0; i < type.dims; ++i)
            for (int j = 0; j < type.dims; ++j)
                s.metric[i][j] = block[first + i][first + j];
        s.fill();
    }
}

// What is found for eight columns of the rows of a vector.
struct Found {
    F value[8];
    alignas(64) int32_t slot[2][W], bits[W]; // of codewords; signs or shifts
};

// Goals of `dims` columns from `first` on: the targets, corrected for the codeword before them.
INLINE void part_goals(const Octet &o, int first, int dims, const F *target, const F *value,
                       F *goal) {
    const int end = first + dims;
    F carried[8];
    for (int k = first; k < end; ++k) {
        carried[k] = V::set1(0);
        for (int i = 0; i < first; ++i) {
            const F error = V::sub(target[i], value[i]);
            carried[k] = V::add(carried[k], V::mul(V::set1(o.upper[i][k]), error));
        }
    }
    for (int k = first; k < end; ++k) {
        F sum = V::set1(0);
        for (int j = first; j <= k; ++j)
            sum = V::add(sum, V::mul(V::set1(o.part_inverse[j][k]), carried[j]));
        goal[k - first] = first ? V::add(target[k], sum) : target[k];
    }
}
// Set the bits of columns from `first` on whose goals have a minus sign.
INLINE void add_signs(const F *goal, int count, int first, F factor, int32_t *bits) {
    I signs = V::iload(bits);
    for (int k = 0; k < count; ++k) {
        const M negative = V::lt(V::mul(goal[k], factor), V::set1(0));
        signs = V::seli(negative, V::ior(signs, V::iset1(1 << (first + k))), signs);
    }
    V::istore(bits, signs);
}
// Where the number of minus signs is odd, the sign whose change adds least to the loss changes;
// returns those lanes.
INLINE unsigned make_even(const Octet &o, const F *target, Found &found) {
    F least = V::set1(0);
    I flip = V::iset1(0);
    for (int i = 0; i < 8; ++i) {
        F left = V::set1(0);
        for (int j = 0; j < 8; ++j)
            left = V::add(left, V::mul(V::set1(o.metric[i][j]),
                                       V::sub(target[j], found.value[j])));
        const F v = found.value[i];
        const F cost = V::mul(v, V::add(left, V::mul(v, V::set1(o.metric[i][i]))));
        const M better = V::lt(cost, least);
        least = i ? V::sel(better, cost, least) : cost;
        flip = i ? V::seli(better, V::iset1(1 << i), flip) : V::iset1(1);
    }
    int32_t flips[W];
    V::istore(flips, flip);
    unsigned odd = 0;
    for (int lane = 0; lane < W; ++lane)
        if (__builtin_parity((unsigned)found.bits[lane]))
            found.bits[lane] ^= flips[lane], odd |= 1u << lane;
    return odd;
}
// (target - value) R RT (target - value)T
INLINE F loss_of(const Octet &o, const F *target, const F *value) {
    F loss = V::set1(0);
    for (int j = 0; j < 8; ++j) {
        F left = V::set1(0);
        for (int i = 0; i <= j; ++i)
            left = V::add(left, V::mul(V::set1(o.upper[i][j]), V::sub(target[i], value[i])));
        loss = V::add(loss, V::mul(left, left));
    }
    return loss;
}
