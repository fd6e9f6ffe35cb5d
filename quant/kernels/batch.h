// Lanes are blocks: the searches of q*_K, q4_0 ... q5_1 run on BATCH blocks at once, each lane
// doing exactly what the scalar code does with its block. Two vectors stand side by side to hide
// the latency of the sums.
constexpr int VECTORS = 2, BATCH = VECTORS * W;

// The arrays have a row more than they need: those of 32 rows would lie 4096 bytes apart, where
// addresses compete for the same places of the first cache.
template <int N>
struct Batch {
    alignas(64) float x[N + 1][BATCH], w[N + 1][BATCH]; // transposed: [weight][block]
    alignas(64) float level[N + 1][BATCH];              // of the trial at hand
    alignas(64) float sum_w[BATCH], scale[BATCH], min[BATCH];
    uint8_t levels[BATCH][N]; // of the best trial
    void put(int block, const float *values, const float *weights) {
        for (int i = 0; i < N; ++i)
            x[i][block] = values[i], w[i][block] = weights[i];
    }
    void put_zeros(int block) {
        for (int i = 0; i < N; ++i)
            x[i][block] = w[i][block] = 0;
    }
    // levels of weight i from the integers in the low bits of MAGIC + level
    void take(int i, const F *magic_levels) {
        alignas(64) int32_t bits[BATCH];
        for (int v = 0; v < VECTORS; ++v)
            V::istore(bits + v * W, V::iand(V::asI(magic_levels[v]), V::iset1(0xff)));
        for (int j = 0; j < BATCH; ++j)
            levels[j][i] = (uint8_t)bits[j];
    }
};
