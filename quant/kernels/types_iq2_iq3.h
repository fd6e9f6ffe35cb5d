// iq2_xxs, iq2_xs, iq2_s, iq3_xxs and iq3_s: what differs between them, and the loop over their
// super-blocks.
//
// N: weights of a block with its own scale. D: weights of a codeword. TOP: the largest value of a
// level, which the first trial gives to the largest weight. SIGMA: sigma2 in mean squares.
// SMALLEST: a block whose largest weight is below is skipped. FACTOR: on the scale of the
// super-block. put writes the codewords and signs of one block, put_level its 4-bit scale. slot:
// the block's number; iq3_s does not count the blocks it skips, as the original does not move its
// pointers past them. KEEP_CODES: a super-block whose scales are all zero keeps its codewords.

struct Iq2Xxs {
    static constexpr int N = 32, D = 8, TRIALS = 13, TOP = 5, BYTES = 66;
    static constexpr float STEP = 0.1f, SIGMA = 1, SMALLEST = EMPTY, FACTOR = 1, SHARE = 0;
    static constexpr bool EVEN_SIGNS = true, KEEP_CODES = false, COUNT_SKIPPED = true;
    static constexpr Again AGAIN = ALL;
    static void put(uint8_t *y, int, int slot, const int *codewords, const unsigned *signs) {
        uint32_t codes = 0, packed = 0;
        for (int k = 0; k < 4; ++k)
            codes |= (uint32_t)codewords[k] << 8 * k, packed |= signs[k] << 7 * k;
        memcpy(y + 2 + 8 * slot, &codes, 4);
        memcpy(y + 6 + 8 * slot, &packed, 4);
    }
    static void put_level(uint8_t *y, int block, int level) {
        y[9 + 8 * block] |= (uint8_t)(level << 4);
    }
};
struct Iq2Xs {
    static constexpr int N = 16, D = 8, TRIALS = 19, TOP = 5, BYTES = 74;
    static constexpr float STEP = 0.1f, SIGMA = 1, SMALLEST = EMPTY, FACTOR = 1, SHARE = 0;
    static constexpr bool EVEN_SIGNS = true, KEEP_CODES = false, COUNT_SKIPPED = true;
    static constexpr Again AGAIN = NOT_CODEWORDS;
    static void put(uint8_t *y, int, int slot, const int *codewords, const unsigned *signs) {
        for (int k = 0; k < 2; ++k) {
            const uint16_t code = (uint16_t)(codewords[k] | signs[k] << 9);
            memcpy(y + 2 + 4 * slot + 2 * k, &code, 2);
        }
    }
    static void put_level(uint8_t *y, int block, int level) {
        y[66 + block / 2] |= (uint8_t)(level << 4 * (block % 2));
    }
};
struct Iq2S {
    static constexpr int N = 16, D = 8, TRIALS = 19, TOP = 5, BYTES = 82;
    static constexpr float STEP = 0.1f, SIGMA = 2, SMALLEST = 1e-8f, FACTOR = 0.9875f,
                           SHARE = 0.25f;
    static constexpr bool EVEN_SIGNS = false, KEEP_CODES = true, COUNT_SKIPPED = true;
    static constexpr Again AGAIN = NOT_CODEWORDS;
    static void put(uint8_t *y, int, int slot, const int *codewords, const unsigned *signs) {
        for (int k = 0; k < 2; ++k) {
            const int j = 2 * slot + k;
            y[2 + j] = (uint8_t)codewords[k];
            y[34 + j] = (uint8_t)signs[k];
            y[66 + j / 4] |= (uint8_t)(codewords[k] >> 8 << 2 * (j % 4));
        }
    }
    static void put_level(uint8_t *y, int block, int level) {
        y[74 + block / 2] |= (uint8_t)(level << 4 * (block % 2));
    }
};
struct Iq3Xxs {
    static constexpr int N = 32, D = 4, TRIALS = 31, TOP = 15, BYTES = 98;
    static constexpr float STEP = 0.2f, SIGMA = 2, SMALLEST = 1e-8f, FACTOR = 1.0125f, SHARE = 0;
    static constexpr bool EVEN_SIGNS = true, KEEP_CODES = false, COUNT_SKIPPED = true;
    static constexpr Again AGAIN = NOT_CODEWORDS;
    static void put(uint8_t *y, int, int slot, const int *codewords, const unsigned *signs) {
        for (int k = 0; k < 8; ++k)
            y[2 + 8 * slot + k] = (uint8_t)codewords[k];
        const uint32_t packed = signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21;
        memcpy(y + 66 + 4 * slot, &packed, 4);
    }
    static void put_level(uint8_t *y, int block, int level) {
        y[69 + 4 * block] |= (uint8_t)(level << 4);
    }
};
struct Iq3S {
    static constexpr int N = 32, D = 4, TRIALS = 19, TOP = 15, BYTES = 110;
    static constexpr float STEP = 0.2f, SIGMA = 2, SMALLEST = 0, FACTOR = 1.033f, SHARE = 0;
    static constexpr bool EVEN_SIGNS = false, KEEP_CODES = true, COUNT_SKIPPED = false;
    static constexpr Again AGAIN = ALL_OR_NONE;
    static void put(uint8_t *y, int block, int slot, const int *codewords, const unsigned *signs) {
        for (int k = 0; k < 8; ++k) {
            y[2 + 8 * slot + k] = (uint8_t)codewords[k];
            y[66 + block] |= (uint8_t)(codewords[k] >> 8 << k);
        }
        for (int k = 0; k < 4; ++k)
            y[74 + 4 * slot + k] = (uint8_t)signs[k];
    }
    static void put_level(uint8_t *y, int block, int level) {
        y[106 + block / 2] |= (uint8_t)(level << 4 * (block % 2));
    }
};

// The largest magnitude that the trials divide by, and the scale where no trial wins. iq2_xxs fits
// a scale first. False: not in the range of the kernels. largest = 0: the block is skipped.
template <class T>
INLINE bool start_of(const float *x, const float *w, float low, float max, float *largest,
                     float *scale) {
    *largest = 0;
    if (max < T::SMALLEST || max == 0)
        return true;
    if (T::AGAIN == ALL) { // iq2_xxs
        if (low * (6 / max) < -4e6f)
            return false;
        uint8_t levels[T::N];
        *scale = fit_positive<T::N>(4, x, w, levels);
        *largest = *scale * 3 > 0 ? *scale * 3 : 0;
        return *largest == 0 || *largest > 1e-20f;
    }
    *largest = max;
    *scale = max / T::TOP;
    return max > 1e-25f;
}
template <class T>
bool encode_row(const Codebook *book, const float *x, uint8_t *y, int64_t n,
                const float *importance) {
    static const Steps<T::TRIALS> steps(T::TOP, T::STEP);
    constexpr int BLOCKS = 256 / T::N, OCTETS = T::N / 8;
    BlockSums sums;
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += T::BYTES) {
        const float sum = sums.of(x, b, n / 256, 256);
        if (!trusted(sum, importance))
            return false;
        alignas(64) float w[256], magnitudes[T::N];
        weigh<256>(x, at(importance, 256 * b), T::SIGMA * sum / 256, w, T::SHARE);
        float scales[BLOCKS], max_scale = 0;
        memset(y, 0, T::BYTES);
        for (int block = 0, slot = 0; block < BLOCKS; ++block, slot += T::COUNT_SKIPPED) {
            const float *wb = w + T::N * block;
            unsigned signs[OCTETS];
            float low, max, largest, scale;
            int codewords[T::N / T::D];
            take_all_signs<T::EVEN_SIGNS, OCTETS>(x + T::N * block, wb, magnitudes, signs);
            extent<T::N>(magnitudes, &low, &max);
            scales[block] = 0;
            if (!start_of<T>(magnitudes, wb, low, max, &largest, &scale))
                return false;
            if (!largest)
                continue;
            if (!encode_block<T::D, T::N, T::TRIALS, T::AGAIN>(
                    *book, steps.value, largest, low, scale, magnitudes, wb, codewords, &scale))
                return false;
            for (int k = 0; k < OCTETS; ++k)
                signs[k] = (scale < 0 ? ~signs[k] : signs[k]) & (T::EVEN_SIGNS ? 127 : 255);
            scales[block] = scale < 0 ? -scale : scale;
            max_scale = max_scale > scales[block] ? max_scale : scales[block];
            T::put(y, block, slot, codewords, signs);
            slot += !T::COUNT_SKIPPED;
        }
        if (!max_scale) {
            if (!T::KEEP_CODES)
                memset(y, 0, T::BYTES);
            continue;
        }
        const float d = max_scale / 31, inverse = 1 / d;
        store_half(y, d * T::FACTOR);
        for (int block = 0; block < BLOCKS; ++block)
            T::put_level(y, block, scale_level(inverse, scales[block], 15));
    }
    return true;
}
template <class T>
bool rows_codebook(const Codebook *book, const float *x, uint8_t *y, int64_t rows, int64_t n,
                   const float *importance) {
    return each_row(encode_row<T>, book, x, y, rows, n, n / 256 * T::BYTES, importance);
}
