// What the loader asks before it trusts a compiled library.
#include "common.h"

GSMAE_API int32_t gsmae_abi() { return GSMAE_ABI; }

// 1 when this processor can run the avx2 variant. Asked of the baseline variant, which runs everywhere.
GSMAE_API int32_t gsmae_has_avx2() {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

GSMAE_API int32_t gsmae_has_openmp() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
