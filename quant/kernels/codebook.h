// The codewords of an IQ type and, for every rounded point that is not one, its candidates.
//
// ggml rounds a group of 8 (or 4) weights to levels, which is a point of the lattice {0, 1, 2}^8
// (or {0 ... 7}^4). If it is not a codeword, the best of a list of candidates is searched: the
// codewords of the nearest shells of distance, by distance, then by index; the first minimum wins.
//
// A list is shorter without candidates that can never win. Candidate a dominates a later candidate
// c if in every dimension a equals c, or a is at the point and c is not, or a is on c's side of the
// point but nearer. Then |scale * a - x| <= |scale * c - x| in every dimension, each term of the
// weighted distance is no larger in floats either (rounding is monotonic), nor is the sum, whose
// terms are added in the same order; and of equals the first in the list, a, wins. So c can go,
// whatever the weights. This needs x to be rounded to the point at that very scale; the callers use
// the full list where a weight is so near a boundary that rounding errors could decide (see
// points_of_trials in codebook_search.h).
#pragma once
#include <stdint.h>

constexpr int LANES = 8; // of the packed candidates

struct CandidateList {
    uint32_t first;  // in members: the codewords in order; count of them
    uint32_t packed; // in packed: vectors * LANES candidates
    uint16_t count;  // 0: the point is a codeword
    uint16_t vectors;
};
struct Candidates {
    const CandidateList *of_point;
    const uint16_t *members;
    // A packed candidate has the level of dimension i in nibble i (8 dimensions) or byte i (4).
    // Lane l of v vectors holds candidates l*v ... l*v+v-1: the lowest lane with the minimum has
    // the first minimum of the list.
    const uint32_t *packed;
};
enum { FULL = 0, PRUNED = 1 };

struct Codebook {
    int dims;
    // Points are numbers in base 3 (8 dimensions) or 8 (4 dimensions).
    const int16_t *index_of_point; // of the codeword, or -1
    const uint16_t *code_of_point; // the levels in 2 (3) bits each
    Candidates candidates[2];
    int8_t level[2048][8];    // of each codeword
    uint32_t levels_of[2048]; // the same in 2 bits each (8 dimensions) or a byte each (4)
    uint8_t offset8[2048][8]; // 8 dimensions: (3*i + level) * 4, into tables of 4 lanes
    uint16_t offset4[512][4]; // 4 dimensions: level * 64
    uint16_t base3[256];      // four levels of 2 bits each as a number in base 3
    uint16_t spread[256];     // bit i moved to bit 2*i
};

// levels: count * dims. shells: of how many distances codewords are candidates. The result is never
// freed.
const Codebook *new_codebook(const int8_t *levels, int count, int dims, int shells, bool prune);
