// What the loader asks before it trusts a compiled library.
#include "common.h"

GSMAE_API int32_t gsmae_abi() { return GSMAE_ABI; }

// How much this processor can run: 0 baseline, 1 also the avx2 variant, 2 also the avx512 variant. Asked of the
// baseline variant, which runs everywhere.
GSMAE_API int32_t gsmae_level() {
#if defined(__x86_64__) || defined(__i386__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx2 ? (avx512 ? 2 : 1) : 0;
#else
    return 0;
#endif
}
