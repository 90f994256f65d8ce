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

#define GSMAE_ABI 4
#define GSMAE_API extern "C" __attribute__((visibility("default")))

namespace gsmae {

// The untyped parallel loop, in threads.cpp.
void run_parallel(int64_t count, int threads, int64_t grain, void (*task)(const void* body, int64_t i),
                  const void* body);

// Calls body(i) for i in [0, count) on at most `threads` threads, the caller among them, handing out `grain`
// consecutive indices at a time. The order of execution is arbitrary, so bodies must be independent. The first
// exception that a body throws comes out of the call; other tasks may then be left out. Inside a body it is a plain
// loop, and so it is with one thread.
template <class Body>
inline void parallel_for(int64_t count, int threads, const Body& body, int64_t grain = 1) {
    if (threads <= 1 || count <= grain) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
    run_parallel(count, threads, grain, [](const void* b, int64_t i) { (*static_cast<const Body*>(b))(i); }, &body);
}

// Index of the calling thread inside parallel_for, in [0, threads): for scratch memory only, never for results.
int thread_index();

}  // namespace gsmae
