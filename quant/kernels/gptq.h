// GPTQ, the loop over the groups of a strip (minitron_quant/gptq/column_solver.py is its numpy
// form): the target of a column is its weight plus what the errors of the columns before it ask
// for. What comes from other strips is a large product, which BLAS computes before this runs; here
// are the columns of one strip, of which later ones wait for earlier ones.
//
// Lanes are rows: they do not depend on each other, so a row gets the same bits whatever the width
// of a vector, the number of rows or the threads.
constexpr int MAX_GROUP = 32;

// One group of columns for the rows of a vector.
struct GroupColumns {
    alignas(64) float weight[MAX_GROUP][W], target[MAX_GROUP][W], error[MAX_GROUP][W];
    float loss[W];
};

// targets of `count` columns (8, or fewer) from column `column` of the strip on: products with the
// errors from the strip's beginning to the group's. Eight sums stand side by side to hide the
// latency of an addition.
template <int COUNT>
INLINE void correct_targets(const GptqStrip &s, int64_t first, int64_t column, int64_t row,
                            float (*target)[W]) {
    F sum[COUNT];
    for (int k = 0; k < COUNT; ++k)
        sum[k] = V::set1(0);
    const float *unit = s.unit + column;
    for (int64_t i = 0; i < first; ++i, unit += s.size) {
        const F error = V::load(s.errors + i * s.stride + row);
        for (int k = 0; k < COUNT; ++k)
            sum[k] = V::add(sum[k], V::mul(V::set1(unit[k]), error));
    }
    for (int k = 0; k < COUNT; ++k)
        V::store(target[k], V::add(V::load(s.targets + (column + k) * s.stride + row), sum[k]));
}

// Coder: group; VECTORS, how many vectors of rows it takes at once, and their columns(v);
// begin(upper, size, group's number), choose(first row, number of vectors).
template <class Coder>
void solve_strip(const GptqStrip &s, Coder &coder) {
    const int group = coder.group;
    for (int64_t first = 0; first < s.columns; first += group) {
        const float *upper = s.upper + first * s.size + first;
        coder.begin(upper, s.size, s.groups[first / group]);
        for (int64_t row = 0; row < s.rows; row += Coder::VECTORS * W) {
            const int64_t left = (s.rows - row) / W;
            const int vectors = left < Coder::VECTORS ? (int)left : Coder::VECTORS;
            for (int v = 0; v < vectors; ++v) {
                GroupColumns &columns = coder.columns(v);
                for (int k = 0; k < group; ++k)
                    V::store(columns.weight[k],
                             V::load(s.weights + (first + k) * s.stride + row + v * W));
                for (int k = 0; k < group; k += 8)
                    correct_targets<8>(s, first, first + k, row + v * W, columns.target + k);
            }
            coder.choose(row, vectors);
            for (int v = 0; v < vectors; ++v) {
                const GroupColumns &columns = coder.columns(v);
                for (int k = 0; k < group; ++k)
                    V::store(s.errors + (first + k) * s.stride + row + v * W,
                             V::load(columns.error[k]));
                for (int k = 0; k < W; ++k)
                    s.loss[row + v * W + k] += columns.loss[k];
            }
        }
    }
}
