// What the files of paths begin with, after the lines that choose the instruction set.
#include "native.h"

#define INLINE static inline __attribute__((always_inline))

// SPECIAL functions are compiled for each set of constants that they are called with, with their
// loops over those unrolled; PLAIN says that this is not worth it, for lanes are loops themselves.
#ifdef PLAIN
#define SPECIAL static
#define UNROLL
#else
#define SPECIAL INLINE
#define UNROLL _Pragma("GCC unroll 16")
#endif

// QC_AHEAD is how far before its use a weight is asked for, in bytes: threads read one stream each,
// and what fetches ahead in hardware stops at every page of 4 KiB.
#define QC_AHEAD 8192

// The lanes say QC_ACCUMULATORS, how many vectors an inner loop may hold; QC_GROUP, the most rows of a
// group; QC_WIDTHS, the width of kernel for what is left of fewer; and EACH_WIDTH, X for each width.

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
