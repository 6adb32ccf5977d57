// What every build of these kernels knows.

#pragma once

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < count; i++)
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;
