// Vectors of LANES floats on the compiler's own vector extension, so that one source serves every instruction set:
// arithmetic, comparison (giving all-ones or all-zero integers) and `mask ? a : b` come with the language.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef GSMAE_LANES
#define GSMAE_LANES 8
#endif

namespace gsmae {

constexpr int LANES = GSMAE_LANES;
typedef float vfloat __attribute__((vector_size(4 * GSMAE_LANES)));
typedef int32_t vint __attribute__((vector_size(4 * GSMAE_LANES)));

inline vfloat broadcast(float x) { return x - vfloat{}; }

inline vfloat load(const float* p) {
    vfloat v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }

inline vfloat select(vint mask, vfloat a, vfloat b) { return mask ? a : b; }

// a where the mask is set, else +0: unlike a product this also clears NaN and infinity.
inline vfloat keep(vint mask, vfloat a) { return (vfloat)((vint)a & mask); }

inline vfloat vmin(vfloat a, vfloat b) { return a < b ? a : b; }
inline vfloat vmax(vfloat a, vfloat b) { return a > b ? a : b; }

inline vfloat vsqrt(vfloat a) {
    vfloat r;
    for (int i = 0; i < LANES; ++i) r[i] = std::sqrt(a[i]);
    return r;
}

inline bool any(vint mask) {
    uint64_t words[sizeof(vint) / 8], all = 0;
    std::memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) all |= word;
    return all != 0;
}

// Sum of the lanes, always in the same order.
inline float sum(vfloat v) {
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) v[i] += v[i + width];
    return v[0];
}

// 2^x for x in [-126, 126], relative error below 2.5e-7: the nearest integer goes into the exponent, a minimax
// polynomial covers the rest. Outside that range the result is meaningless (mask it), but nothing traps.
inline vfloat exp2_in_range(vfloat x) {
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
    const vfloat shifted = x + shifter;
    const vfloat f = x - (shifted - shifter);
    vfloat p = broadcast(0.0013276472454890609f);
    p = p * f + 0.009675540961325169f;
    p = p * f + 0.05550713092088699f;
    p = p * f + 0.24022120237350464f;
    p = p * f + 0.6931469440460205f;
    p = p * f + 1.0f;
    return (vfloat)((vint)p + ((vint)shifted << 23));
}

}  // namespace gsmae
