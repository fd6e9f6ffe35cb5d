// GPTQ of the types with codewords: the two terms of a loss (see gptq_codebook.h), tables of the
// squares and the scan over all codewords. Signs and their opposites have the same square, so half
// of the patterns are enough.

// x M xT of every pattern and codeword, [pattern][word], for the `dims` columns of a codeword.
struct Squares {
    const GptqCodebook *type;
    int dims, patterns;
    float metric[8][8];
    float *table;

    INLINE const float *of(const Squares &s, int pattern) {
        if (!s.type->shifted && pattern >= s.patterns)
            pattern = 2 * s.patterns - 1 - pattern;
        return s.table + (int64_t)pattern * s.type->words;
    }
    // The words of W candidates with a pattern of signs, or shifted.
    INLINE void word(const GptqCodebook &type, int pattern, int c, F *x) {
        for (int k = 0; k < type.dims; ++k) {
            const F level = V::load(type.table + (int64_t)k * type.words + c);
            const float moved = pattern ? -type.shift : type.shift;
            x[k] = type.shifted ? V::add(level, V::set1(moved))
                                : V::mul(level, V::set1(pattern >> k & 1 ? -1.f : 1.f));
        }
    }
    void fill() {
        for (int c = 0; c < type->words; c += W) {
            if (type->shifted || dims == 4)
                for (int p = 0; p < patterns; ++p) {
                    F x[8];
                    word(*type, p, c, x);
                    V::store(table + (int64_t)p * type->words + c, square(x, 0, dims));
                }
            else
                fill_halves(c);
        }
    }
    ALWAYS_INLINE F square(const F *x, int first, int end) const {
        F sum = V::set1(0);
        for (int i = first; i < end; ++i) {
            F left = V::set1(0);
            for (int j = first; j < end; ++j)
                left = V::add(left, V::mul(V::set1(metric[i][j]), x[j]));
            sum = V::add(sum, V::mul(left, x[i]));
        }
        return sum;
    }
    // Eight columns as two halves: a square is that of the first, that of the second, and twice
    // their product, which is linear in the signs of each.
    void fill_halves(int c) {
        F low_square[16], x[8], plain[8];
        word(*type, 0, c, plain);
        for (int p = 0; p < 16; ++p) {
            word(*type, p, c, x);
            low_square[p] = square(x, 0, 4);
        }
        for (int high = 0; high < patterns / 16; ++high) {
            word(*type, high << 4, c, x);
            const F high_square = square(x, 4, 8);
            F cross[4];
            for (int i = 0; i < 4; ++i) {
                cross[i] = V::set1(0);
                for (int j = 4; j < 8; ++j)
                    cross[i] = V::add(cross[i], V::mul(V::set1(2 * metric[i][j]), x[j]));
                cross[i] = V::mul(cross[i], plain[i]);
            }
            for (int p = 0; p < 16; ++p) {
                F both = V::add(low_square[p], high_square);
                for (int i = 0; i < 4; ++i)
                    both = p >> i & 1 ? V::sub(both, cross[i]) : V::add(both, cross[i]);
                V::store(table + (int64_t)(high << 4 | p) * type->words + c, both);
            }
        }
    }
};

// A type's codewords as the scan and the packing need them. Eight-column codewords have three
// levels, so two columns have nine products with their slopes: a table of 16 numbers for each pair
// of columns replaces four multiplications of a candidate by two look-ups. Narrower vectors have no
// such look-up and multiply; sums are those of pairs either way, and so the bits are the same.
constexpr bool PAIRS_BY_TABLE = W == 16;
struct Codewords {
    float *row;           // [word][dim]
    int32_t *pair;        // [pair of columns][word]: the levels' numbers, the second times 4
    float first[16], second[16]; // the levels that the numbers of a pair stand for

    void fill(const GptqCodebook &type) {
        float level[4] = {type.table[0], 0, 0, 0};
        int levels = 1;
        for (int c = 0; c < type.words; ++c)
            for (int k = 0; k < type.dims; ++k)
                row[c * type.dims + k] = type.table[(int64_t)k * type.words + c];
        if (type.dims != 8)
            return;
        for (int k = 0; k < 8; ++k)
            for (int c = 0; c < type.words; ++c) {
                const float wanted = row[c * 8 + k];
                int number = 0;
                while (number < levels && level[number] != wanted)
                    ++number;
                if (number == levels && levels < 3)
                    level[levels++] = wanted;
                int32_t &pairs = pair[(int64_t)(k / 2) * type.words + c];
                pairs = k % 2 ? pairs | number << 2 : number;
            }
        for (int i = 0; i < 16; ++i)
            first[i] = level[i & 3], second[i] = level[i >> 2];
    }
};

// The first codeword of the least loss for two rows at once, whose slopes stand in two lanes. Not
// inlined: the loop needs most registers.
template <int DIMS>
__attribute__((noinline)) void scan(const GptqCodebook &type, const Codewords &words,
                                    const float *const square[2], const float (*slope)[W],
                                    const int lane[2], int *found) {
    constexpr bool TABLES = PAIRS_BY_TABLE && DIMS == 8;
    F least[2], factor[DIMS][2];
    V::T16 products[DIMS / 2][2];
    I place[2];
    for (int q = 0; q < 2; ++q) {
        least[q] = V::set1(__builtin_inff()), place[q] = V::iset1(0);
        for (int k = 0; k < DIMS; ++k)
            factor[k][q] = V::set1(slope[k][lane[q]]);
        for (int p = 0; TABLES && p < DIMS / 2; ++p) {
            float sums[16];
            for (int i = 0; i < 16; i += W)
                V::store(sums + i, V::add(V::mul(factor[2 * p][q], V::load(words.first + i)),
                                          V::mul(factor[2 * p + 1][q], V::load(words.second + i))));
            products[p][q] = V::tab16(sums);
        }
    }
    for (int c = 0; c < type.words; c += W) {
        F loss[2] = {V::load(square[0] + c), V::load(square[1] + c)};
        for (int p = 0; p < DIMS / 2; ++p) {
            if (TABLES) {
                const I numbers = V::iload(words.pair + (int64_t)p * type.words + c);
                for (int q = 0; q < 2; ++q)
                    loss[q] = V::sub(loss[q], V::lut16(products[p][q], numbers));
                continue;
            }
            const F first = V::load(type.table + (int64_t)(2 * p) * type.words + c),
                    second = V::load(type.table + (int64_t)(2 * p + 1) * type.words + c);
            for (int q = 0; q < 2; ++q)
                loss[q] = V::sub(loss[q], V::add(V::mul(factor[2 * p][q], first),
                                                 V::mul(factor[2 * p + 1][q], second)));
        }
        for (int q = 0; q < 2; ++q) {
            const M better = V::lt(loss[q], least[q]);
            least[q] = V::sel(better, loss[q], least[q]);
            place[q] = V::seli(better, V::iset1(c), place[q]);
        }
    }
    for (int q = 0; q < 2; ++q) {
        unsigned lanes = V::bits(V::eq(least[q], V::set1(V::hmin(least[q]))));
        int32_t places[W];
        V::istore(places, place[q]);
        found[q] = lanes ? type.words : 0; // 0 if no loss is a number
        for (; lanes; lanes &= lanes - 1) {
            const int one = __builtin_ctz(lanes);
            found[q] = places[one] + one < found[q] ? places[one] + one : found[q];
        }
    }
}
