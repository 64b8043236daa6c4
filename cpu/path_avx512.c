// The path "avx512": AVX-512 with VNNI.
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif
#include "path.h"

#include "lanes_avx512.h"

#include "rows.h"

#include "matmul.h"

#include "attention.h"

#include "execute.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

static int works(void) {
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
		__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

const qc_path qc_avx512 = {"avx512", works, run, argmax, exp_row};
#endif
