// The path "avx2": AVX2 with FMA and F16C.
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "path.h"

#include "lanes_avx2.h"

#include "rows.h"

#include "matmul.h"

#include "attention.h"

#include "execute.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

static int works(void) {
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

const qc_path qc_avx2 = {"avx2", works, run, argmax, exp_row};
#endif
