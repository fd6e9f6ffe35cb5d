// Building the lists of candidates; see codebook.h for what they are.
#include "codebook.h"
#include "types.h"
#include <stdlib.h>
#include <new>
#include <vector>

namespace {
constexpr int MAX_DISTANCE = 512; // squared, between levels: 4 * 7^2 + 1 is the largest

template <class T>
const T *kept(const std::vector<T> &values) {
    T *copy = new T[values.size()];
    memcpy(copy, values.data(), values.size() * sizeof(T));
    return copy;
}

struct Builder {
    Codebook &book;
    const int count, shells;
    const int base, bits; // of a level in a point, and in a code
    int points = 1;
    int step[8];

    Builder(Codebook &codebook, const int8_t *levels, int codewords, int distances)
        : book(codebook),
          count(codewords),
          shells(distances),
          base(codebook.dims == 8 ? 3 : 8),
          bits(codebook.dims == 8 ? 2 : 3) {
        for (int i = 0; i < book.dims; ++i)
            step[i] = points, points *= base;
        for (int g = 0; g < count; ++g)
            add_codeword(g, levels + g * book.dims);
        for (int b = 0; b < 256; ++b) {
            book.base3[b] =
                (uint16_t)((b & 3) + 3 * (b >> 2 & 3) + 9 * (b >> 4 & 3) + 27 * (b >> 6 & 3));
            for (int i = 0; i < 8; ++i)
                book.spread[b] |= (uint16_t)((b >> i & 1) << 2 * i);
        }
    }
    void add_codeword(int g, const int8_t *levels) {
        for (int i = 0; i < book.dims; ++i) {
            const int level = levels[i];
            book.level[g][i] = (int8_t)level;
            book.levels_of[g] |= (uint32_t)level << (book.dims == 8 ? 2 : 8) * i;
            if (book.dims == 8)
                book.offset8[g][i] = (uint8_t)(4 * (3 * i + level));
            else
                book.offset4[g][i] = (uint16_t)(64 * level);
        }
    }
    void levels_of(int point, int *levels) const {
        for (int i = 0; i < book.dims; ++i)
            levels[i] = point / step[i] % base;
    }
    void index_points() {
        std::vector<int16_t> index(points, -1);
        std::vector<uint16_t> code(points, 0);
        for (int g = 0; g < count; ++g) {
            int point = 0;
            for (int i = 0; i < book.dims; ++i)
                point += book.level[g][i] * step[i];
            index[point] = (int16_t)g;
        }
        for (int p = 0; p < points; ++p)
            for (int i = 0; i < book.dims; ++i)
                code[p] |= (uint16_t)(p / step[i] % base << bits * i);
        book.index_of_point = kept(index);
        book.code_of_point = kept(code);
    }
    // The codewords of the nearest shells around a point, by distance, then by index.
    void nearest(const int *levels, std::vector<int> &distance, std::vector<uint16_t> &list) const {
        int histogram[MAX_DISTANCE] = {0};
        for (int g = 0; g < count; ++g) {
            int d = 0;
            for (int i = 0; i < book.dims; ++i) {
                const int e = book.level[g][i] - levels[i];
                d += e * e;
            }
            distance[g] = d;
            ++histogram[d];
        }
        list.clear();
        for (int d = 0, found = 0; d < MAX_DISTANCE && found < shells; ++d) {
            if (!histogram[d])
                continue;
            ++found;
            for (int g = 0; g < count; ++g)
                if (distance[g] == d)
                    list.push_back((uint16_t)g);
        }
    }
    bool dominates(int a, int c, const int *levels) const {
        for (int i = 0; i < book.dims; ++i) {
            const int from_a = book.level[a][i] - levels[i], from_c = book.level[c][i] - levels[i];
            if (from_a == from_c || from_a == 0)
                continue;
            if (!(from_a > 0 ? from_c > from_a : from_c < from_a))
                return false;
        }
        return true;
    }
    void prune(const int *levels, std::vector<uint16_t> &list) const {
        size_t kept_count = 0;
        for (const uint16_t c : list) {
            bool dominated = false;
            for (size_t k = 0; k < kept_count && !dominated; ++k)
                dominated = dominates(list[k], c, levels);
            if (!dominated)
                list[kept_count++] = c;
        }
        list.resize(kept_count);
    }
    struct Lists {
        std::vector<CandidateList> of_point;
        std::vector<uint16_t> members;
        std::vector<uint32_t> packed;
    };
    void append(Lists &lists, int point, const std::vector<uint16_t> &list) const {
        const int n = (int)list.size(), vectors = (n + LANES - 1) / LANES;
        lists.of_point[point] = {(uint32_t)lists.members.size(), (uint32_t)lists.packed.size(),
                                 (uint16_t)n, (uint16_t)vectors};
        lists.members.insert(lists.members.end(), list.begin(), list.end());
        for (int v = 0; v < vectors; ++v)
            for (int lane = 0; lane < LANES; ++lane) {
                const int j = lane * vectors + v, g = list[j < n ? j : n - 1];
                uint32_t item = 0;
                for (int i = 0; i < book.dims; ++i)
                    item |= (uint32_t)book.level[g][i] << (book.dims == 8 ? 4 : 8) * i;
                lists.packed.push_back(item);
            }
    }
    void build_lists(bool pruned_too) {
        Lists full, pruned;
        full.of_point.assign(points, CandidateList());
        pruned.of_point.assign(points, CandidateList());
        std::vector<int> distance(count);
        std::vector<uint16_t> list;
        for (int p = 0; p < points; ++p) {
            if (book.index_of_point[p] >= 0)
                continue;
            int levels[8];
            levels_of(p, levels);
            nearest(levels, distance, list);
            append(full, p, list);
            if (!pruned_too)
                continue;
            prune(levels, list);
            append(pruned, p, list);
        }
        Lists *built[2] = {&full, &pruned};
        for (int k = 0; k < (pruned_too ? 2 : 1); ++k) {
            built[k]->packed.insert(built[k]->packed.end(), LANES, 0); // loads run past the end
            book.candidates[k] = {kept(built[k]->of_point), kept(built[k]->members),
                                  kept(built[k]->packed)};
        }
    }
};
} // namespace

const Codebook *new_codebook(const int8_t *levels, int count, int dims, int shells, bool prune) {
    Codebook *book = new (std::nothrow) Codebook();
    if (!book)
        return nullptr;
    book->dims = dims;
    Builder builder(*book, levels, count, shells);
    builder.index_points();
    builder.build_lists(prune);
    return book;
}
