// Where llama.cpp's work memory on the processor begins. ggml-cpu takes it with new[] in a
// computation that needs more than those before it, and glibc's malloc puts it at any multiple of
// 16. Just before such a computation malloc is led to give a multiple of 64 next.
#include "kernels.h"
#include <stdlib.h>

#ifdef __GLIBC__
namespace {
constexpr size_t LINE = 64;
constexpr size_t LARGE = 31 << 20; // glibc maps pages of its own for every block of 32 MiB
constexpr size_t HEADER = 8;       // what a block of malloc's takes beside its bytes

// A compiler leaves out a block that is freed at once, unless somebody else may have seen it.
void *allocate(size_t size) {
    void *block = malloc(size);
    __asm__ volatile("" : "+r"(block));
    return block;
}

void align(size_t past) {
    // once such a block was freed, glibc takes blocks up to its size from the heap, without pages
    // of their own, in which they begin at 16 bytes
    static const bool from_heap = (free(allocate(LARGE + LINE)), true);
    void *block = from_heap ? allocate(LARGE) : nullptr;
    const size_t missing = (past - (size_t)block) % LINE;
    if (block && missing)
        // a small block stays; the rest goes back to the end of the heap, which is there now
        block = realloc(block, missing + LINE - HEADER);
    else
        free(block);
}
} // namespace
#else
static void align(size_t) {}
#endif

bool kernels_align_work(void *, bool, void *alignment) {
    WorkAlignment &work = *(WorkAlignment *)alignment;
    if (work.wanted) {
        work.wanted = 0;
        align((size_t)work.past);
    }
    return false;
}
