// What every kernel file shares: the exported C ABI and parallel loops.
//
// Conventions of the library
// * Every exported function is `GSMAE_API`, named gsmae_<noun>_<verb>, takes raw pointers and plain numbers, and
//   never keeps a pointer after it returned. Sizes are int32_t or int64_t; arrays are C-contiguous.
// * Results do not depend on the number of threads: a task writes only its own slots, and sums over tasks are taken
//   in task order afterwards.
// * Raise GSMAE_ABI here and in gsmae/ops/native/library.py whenever an exported signature changes.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

#define GSMAE_ABI 2
#define GSMAE_API extern "C" __attribute__((visibility("default")))

namespace gsmae {

// Calls body(i) for i in [0, count) on at most `threads` threads, handing out `grain` consecutive indices at a time.
// The order of execution is arbitrary, so bodies must be independent. One thread starts no team at all, which keeps
// processes forked by a data loader safe.
template <class Body>
inline void parallel_for(int64_t count, int threads, const Body& body, int64_t grain = 1) {
#ifdef _OPENMP
    if (threads > 1 && count > grain) {
#pragma omp parallel for schedule(dynamic, grain) num_threads(threads)
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#endif
    (void)threads;
    (void)grain;
    for (int64_t i = 0; i < count; ++i) body(i);
}

// Index of the calling thread inside parallel_for, in [0, threads): for scratch memory only, never for results.
inline int thread_index() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace gsmae
