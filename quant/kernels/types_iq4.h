// iq4_nl and iq4_xs: levels are 16 fixed values.
//
// The index of the nearest value is the number of midpoints that are not above x: the differences
// that ggml's search compares at a midpoint are exact in floats, and halves go up there as well. A
// search of four steps in lanes finds it without branches. Its 15 trials and the start fill 16
// lanes; a block's sums run in order in each lane.
struct Values {
    alignas(64) float value[16];
    alignas(64) float step[16];            // of the trials; the last is the start, which differs
    float middle, middle_low, middle_high; // midpoints number 7, 3, 11
    alignas(32) float middle_odd[4], middle_even[8];
    Values() {
        static const int values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                       1,    13,   25,  38,  53,  69,  89,  113};
        float midpoint[15];
        for (int i = 0; i < 16; ++i)
            value[i] = (float)values[i], step[i] = i - 7 + (float)values[0];
        for (int i = 0; i < 15; ++i)
            midpoint[i] = (values[i] + values[i + 1]) * 0.5f;
        middle = midpoint[7], middle_low = midpoint[3], middle_high = midpoint[11];
        for (int i = 0; i < 4; ++i)
            middle_odd[i] = midpoint[4 * i + 1];
        for (int i = 0; i < 8; ++i)
            middle_even[i] = midpoint[2 * i];
    }
};
template <class T>
INLINE typename T::I nearest_value(typename T::F x, const Values &v, typename T::F odd,
                                   typename T::F even) {
    const typename T::M upper = T::ge(x, T::set1(v.middle));
    const typename T::M second =
        T::ge(x, T::sel(upper, T::set1(v.middle_high), T::set1(v.middle_low)));
    typename T::I i = T::inc(T::iset1(0), upper);
    i = T::inc(T::iadd(i, i), second);
    i = T::inc(T::iadd(i, i), T::ge(x, T::lut4(odd, i)));
    return T::inc(T::iadd(i, i), T::ge(x, T::lut8(even, i)));
}
// The weight of largest magnitude among 32, the first of equals; +0 if all are zero.
INLINE float largest_weight(const float *x) {
    alignas(32) float magnitudes[32];
    __m256 high = Avx2::set1(0);
    for (int i = 0; i < 32; i += 8) {
        const __m256 a = Avx2::andnot(Avx2::set1(-0.f), Avx2::load(x + i));
        Avx2::store(magnitudes + i, a);
        high = Avx2::max(high, a);
    }
    const float amax = -Avx2::hmin(Avx2::sub(Avx2::set1(-0.f), high));
    if (amax == 0)
        return 0;
    for (int i = 0; i < 32; i += 8) {
        const unsigned equal = Avx2::bits(Avx2::eq(Avx2::load(magnitudes + i), Avx2::set1(amax)));
        if (equal)
            return x[i + __builtin_ctz(equal)];
    }
    return 0;
}
INLINE float iq4_scale(const Values &values, const float *x, const float *w) {
    constexpr int VECTORS_OF_TRIALS = 16 / W, START = 15;
    const float max = largest_weight(x);
    if (absolute(max) < EMPTY)
        return 0;
    alignas(64) float inverse[16], sum_qx[16], sum_q2[16];
    F inv[VECTORS_OF_TRIALS], qx[VECTORS_OF_TRIALS], q2[VECTORS_OF_TRIALS];
    for (int t = 0; t < 16; ++t)
        inverse[t] = values.step[t] / max;
    inverse[START] = 1 / (-max / values.value[0]);
    for (int v = 0; v < VECTORS_OF_TRIALS; ++v)
        inv[v] = V::load(inverse + v * W), qx[v] = q2[v] = V::set1(0);
    const F odd = V::tab4(values.middle_odd), even = V::tab8(values.middle_even);
    const V::T16 table = V::tab16(values.value);
    for (int i = 0; i < 32; ++i) {
        const F xv = V::set1(x[i]), wv = V::set1(w[i]);
        for (int v = 0; v < VECTORS_OF_TRIALS; ++v) {
            const F q = V::lut16(table, nearest_value<V>(V::mul(inv[v], xv), values, odd, even)),
                    wq = V::mul(wv, q);
            qx[v] = V::add(qx[v], V::mul(wq, xv));
            q2[v] = V::add(q2[v], V::mul(wq, q));
        }
    }
    for (int v = 0; v < VECTORS_OF_TRIALS; ++v)
        V::store(sum_qx + v * W, qx[v]), V::store(sum_q2 + v * W, q2[v]);
    float scale = sum_q2[START] > 0 ? sum_qx[START] / sum_q2[START] : 0.f,
          best = scale * sum_qx[START];
    for (int t = 0; t < 15; ++t)
        if (sum_q2[t] > 0 && sum_qx[t] * sum_qx[t] > best * sum_q2[t]) {
            scale = sum_qx[t] / sum_q2[t];
            best = scale * sum_qx[t];
        }
    return scale;
}
INLINE void put_nearest_values(const Values &values, const float *x, float scale,
                               uint8_t *q) { // 32 weights, 16 bytes
    alignas(32) uint32_t index[32];
    const __m256 inverse = Avx2::set1(scale ? 1 / scale : 0.f), odd = Avx2::tab4(values.middle_odd),
                 even = Avx2::tab8(values.middle_even);
    for (int i = 0; i < 32; i += 8)
        Avx2::istore(index + i,
                     nearest_value<Avx2>(Avx2::mul(inverse, Avx2::load(x + i)), values, odd, even));
    for (int i = 0; i < 16; ++i)
        q[i] = (uint8_t)(index[i] | index[i + 16] << 4);
}

INLINE const Values &values_of_iq4() {
    static const Values values;
    return values;
}
bool row_iq4_nl(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *importance) {
    const Values &values = values_of_iq4();
    BlockSums sums;
    for (int64_t b = 0; b < n / 32; ++b, x += 32, y += 18) {
        const float sum = sums.of(x, b, n / 32, 32);
        if (!trusted(sum, importance))
            return false;
        alignas(64) float w[32];
        weigh<32>(x, at(importance, 32 * b), sum * (2.f / 32), w);
        const float scale = iq4_scale(values, x, w);
        store_half(y, scale);
        put_nearest_values(values, x, scale, y + 2);
    }
    return true;
}
bool row_iq4_xs(const Codebook *, const float *x, uint8_t *y, int64_t n, const float *importance) {
    const Values &values = values_of_iq4();
    BlockSums sums;
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += 136) {
        const float sum = sums.of(x, b, n / 256, 256);
        if (!trusted(sum, importance))
            return false;
        alignas(64) float w[256];
        float scales[8], amax = 0, max = 0;
        weigh<256>(x, at(importance, 256 * b), sum * (2.f / 256), w);
        for (int block = 0; block < 8; ++block) {
            scales[block] = iq4_scale(values, x + 32 * block, w + 32 * block);
            if (absolute(scales[block]) > amax)
                amax = absolute(scales[block]), max = scales[block];
        }
        const float d = -max / 32, inverse = d ? 1 / d : 0.f;
        uint16_t high = 0;
        memset(y + 4, 0, 4);
        for (int block = 0; block < 8; ++block) {
            const int level = clamp(nearest_int(inverse * scales[block]), -32, 31),
                      packed = level + 32;
            put_nearest_values(values, x + 32 * block, d * level, y + 8 + 16 * block);
            y[4 + block / 2] |= (uint8_t)((packed & 15) << 4 * (block % 2));
            high |= (uint16_t)(packed >> 4 << 2 * block);
        }
        store_half(y, d);
        memcpy(y + 2, &high, 2);
    }
    return true;
}
bool rows_iq4_nl(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                 const float *importance) {
    return each_row(row_iq4_nl, book, x, y, rows, n, n / 32 * 18, importance);
}
bool rows_iq4_xs(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                 const float *importance) {
    return each_row(row_iq4_xs, book, x, y, rows, n, n / 256 * 136, importance);
}
