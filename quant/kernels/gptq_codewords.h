// GPTQ of the types with codewords: the codewords in parts, and the squares, the first term of a
// loss (see gptq_codebook.h).

// A type's codewords in the order of the scan, in slots. A codeword is two halves and a half two
// quarters, of a column or two, of which there are few different ones. Four slots in a row have the
// same second half, so where it changes some words are repeated.
struct Codewords {
    float *level, *row;      // [dim][slot] and [slot][dim]
    int32_t *word;           // [slot]: the number of the codeword
    int32_t *first, *second; // [slot] and [slot / 4]: where the products of a half stand
    int slots, quarters;     // how many there are
    int64_t stride;          // of a column of levels
    float quarter[MAX_QUARTERS][2];

    static int64_t memory(const GptqCodebook &type) {
        return (2 * type.dims + 3) * most_slots(type);
    }
    // The number of a quarter, which may be a new one.
    int quarter_of(const float *levels, int columns) {
        int n = 0;
        while (n < quarters && (quarter[n][0] != levels[0] || quarter[n][1] != levels[columns - 1]))
            ++n;
        if (n == quarters)
            quarter[n][0] = levels[0], quarter[n][1] = levels[columns - 1], ++quarters;
        return n;
    }
    // Where the products of a half stand: those of each first quarter one after the other.
    int half_of(const float *levels, int columns) {
        const int first_quarter = quarter_of(levels, columns / 2);
        return (first_quarter * MAX_QUARTERS + quarter_of(levels + columns / 2, columns / 2)) * W;
    }
    void add(int number, const float *levels, int dims) {
        for (int k = 0; k < dims; ++k)
            row[slots * dims + k] = levels[k];
        word[slots] = number;
        first[slots] = half_of(levels, dims / 2);
        if (slots % 4 == 0)
            second[slots / 4] = half_of(levels + dims / 2, dims / 2);
        ++slots;
    }
    void repeat(int multiple, int dims) {
        while (slots % multiple)
            add(word[slots - 1], row + (slots - 1) * dims, dims);
    }
    void fill(const GptqCodebook &type, float *memory) {
        const int dims = type.dims;
        stride = most_slots(type);
        level = memory, row = level + dims * stride;
        word = (int32_t *)(row + dims * stride), first = word + stride, second = first + stride;
        slots = quarters = 0;
        for (int c = 0; c < type.words; ++c) {
            float levels[8];
            for (int k = 0; k < dims; ++k)
                levels[k] = type.table[(int64_t)k * type.words + c];
            if (slots % 4 && half_of(levels + dims / 2, dims / 2) != second[slots / 4])
                repeat(4, dims);
            add(c, levels, dims);
        }
        repeat(16, dims);
        for (int c = 0; c < slots; ++c)
            for (int k = 0; k < dims; ++k)
                level[k * stride + c] = row[c * dims + k];
    }
};

// x M xT of every pattern and codeword, [pattern][slot], for the `dims` columns of a codeword.
// Signs and their opposites have the same square, so half of the patterns are enough.
struct Squares {
    const GptqCodebook *type;
    const Codewords *words;
    int dims, patterns;
    int64_t stride; // of a pattern
    float metric[8][8];
    float *table;

    // Of the pattern with the same squares that has a table.
    int number_of(int pattern) const {
        return type->shifted || pattern < patterns ? pattern : 2 * patterns - 1 - pattern;
    }
    const float *of(int number) const { return table + number * stride; }
    // The values of W codewords with a pattern of signs, or shifted.
    void values(int pattern, int c, F *x) const {
        for (int k = 0; k < dims; ++k) {
            const F level = V::load(words->level + k * words->stride + c);
            const float moved = pattern ? -type->shift : type->shift;
            x[k] = type->shifted ? V::add(level, V::set1(moved))
                                 : V::mul(level, V::set1(pattern >> k & 1 ? -1.f : 1.f));
        }
    }
    void fill() {
        F x[8];
        const bool halves = !type->shifted && dims == 8;
        for (int p = 0; p < (halves ? 16 : patterns); ++p)
            for (int c = 0; c < words->slots; c += W) {
                values(p, c, x);
                V::store(table + p * stride + c, square(x, 0, halves ? 4 : dims));
            }
        for (int high = halves ? patterns / 16 - 1 : -1; high >= 0; --high)
            fill_halves(high);
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
    // their product, which is linear in the signs of each. The squares of the first halves stand in
    // the patterns whose second half is 0, which are filled last.
    void fill_halves(int high) {
        for (int c = 0; c < words->slots; c += W) {
            F x[8], plain[8], cross[4];
            values(0, c, plain);
            values(high << 4, c, x);
            for (int i = 0; i < 4; ++i) {
                cross[i] = V::set1(0);
                for (int j = 4; j < 8; ++j)
                    cross[i] = V::add(cross[i], V::mul(V::set1(2 * metric[i][j]), x[j]));
                cross[i] = V::mul(cross[i], plain[i]);
            }
            F sum[16] = {square(x, 4, 8)}; // of all but the first half's square
            for (int i = 0; i < 4; ++i)
                for (int p = 0; p < 1 << i; ++p) {
                    sum[p | 1 << i] = V::sub(sum[p], cross[i]);
                    sum[p] = V::add(sum[p], cross[i]);
                }
            const float *low = table + c;
            float *both = table + (high << 4) * stride + c;
            for (int p = 0; p < 16; ++p, low += stride, both += stride)
                V::store(both, V::add(V::load(low), sum[p]));
        }
    }
};
