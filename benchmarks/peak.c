// What the units of a processor do in loops of nothing else, and what its memory gives: two lines of JSON in all.
// Compiled and run by peak.py, with OpenMP and for this processor.

#define _GNU_SOURCE
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { TURNS = 20000000, TRIES = 5, BYTES = 512 << 20, HUGE_PAGE = 2 << 20, STEP = 256 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Products of zeros are added to fifteen sums, none of which waits for another.
#define TURN(registers, instruction)                                                                                   \
    __asm__ volatile("vxorps %%xmm0, %%xmm0, %%xmm0\n"                                                                 \
                     ".irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"                                     \
                     instruction " %%" registers "0, %%" registers "0, %%" registers "\\n\n"                           \
                     ".endr" ::                                                                                        \
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",    \
                           "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

// Operations in a second, of all threads together.
#define RATE(name, registers, instruction, operations)                                                                 \
    static double name(void) {                                                                                         \
        double best = 1e9;                                                                                             \
        for (int i = 0; i < TRIES; i++) {                                                                              \
            double start = now();                                                                                      \
            _Pragma("omp parallel") for (int turn = 0; turn < TURNS; turn++) TURN(registers, instruction);             \
            double took = now() - start;                                                                               \
            if (took < best) best = took;                                                                              \
        }                                                                                                              \
        return 15.0 * TURNS * (operations) * omp_get_max_threads() / best;                                             \
    }

#ifdef __AVX512F__
RATE(float32, "zmm", "vfmadd231ps", 32)
#elif defined __FMA__
RATE(float32, "ymm", "vfmadd231ps", 16)
#endif
#ifdef __AVX512BF16__
RATE(bfloat16, "zmm", "vdpbf16ps", 64)
#endif
#ifdef __AVX512VNNI__
RATE(int8, "zmm", "vpdpbusd", 128)
#endif

static void rates(void) {
    printf("{\"threads\": %d", omp_get_max_threads());
#ifdef __FMA__
    printf(", \"float32\": %.0f", float32() / 1e9);
#endif
#ifdef __AVX512BF16__
    printf(", \"bfloat16\": %.0f", bfloat16() / 1e9);
#endif
#ifdef __AVX512VNNI__
    printf(", \"int8\": %.0f", int8() / 1e9);
#endif
    printf("}\n");
}

// Bytes in a second that all threads read, each a part of its own, from memory in pages of 4 kB or 2 MB.
static double reading(int huge) {
    char *all = mmap(NULL, (size_t)BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) exit(1);
    char *from = (char *)(((uintptr_t)all + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    madvise(from, BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#pragma omp parallel for
    for (size_t i = 0; i < BYTES; i += 8) *(uint64_t *)(from + i) = i * 0x9E3779B97F4A7C15u;
    double best = 1e9;
    for (int i = 0; i < TRIES; i++) {
        double start = now();
#pragma omp parallel for
        for (size_t at = 0; at < BYTES; at += STEP) {
            __m256i sum = _mm256_setzero_si256();
            for (int j = 0; j < STEP; j += 32) sum = _mm256_add_epi32(sum, _mm256_load_si256((void *)(from + at + j)));
            __asm__ volatile("" ::"x"(sum));
        }
        double took = now() - start;
        if (took < best) best = took;
    }
    munmap(all, (size_t)BYTES + HUGE_PAGE);
    return BYTES / best;
}

int main(void) {
    rates();
    printf("{\"small_pages\": %.1f, \"huge_pages\": %.1f}\n", reading(0) / 1e9, reading(1) / 1e9);
    return 0;
}
