// Vectors of LANES floats on the compiler's own vector extension, so that one source serves every instruction set:
// arithmetic, comparison (giving all-ones or all-zero integers) and `mask ? a : b` come with the language.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef GSMAE_LANES  // 8 or 16
#define GSMAE_LANES 8
#endif

namespace gsmae {

constexpr int LANES = GSMAE_LANES;
typedef float vfloat __attribute__((vector_size(4 * GSMAE_LANES)));
typedef int32_t vint __attribute__((vector_size(4 * GSMAE_LANES)));

// Always eight floats, where the width matters to the layout of memory.
typedef float eight __attribute__((vector_size(32)));
typedef int32_t eight_ints __attribute__((vector_size(32)));
#ifdef __clang__
#define GSMAE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GSMAE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (::gsmae::eight_ints){__VA_ARGS__})
#endif

inline vfloat broadcast(float x) { return x - vfloat{}; }

template <class Vector = vfloat>
inline Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class Vector>
inline void store(float* p, Vector v) {
    std::memcpy(p, &v, sizeof v);
}

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

// Towards zero; the values must fit.
inline vint to_int(vfloat a) { return __builtin_convertvector(a, vint); }
inline vfloat to_float(vint a) { return __builtin_convertvector(a, vfloat); }

inline bool any(vint mask) {
    uint64_t words[sizeof(vint) / 8], all = 0;
    std::memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) all |= word;
    return all != 0;
}

inline eight fold(vfloat v) {
    eight parts[LANES / 8], total;
    std::memcpy(parts, &v, sizeof v);
    total = parts[0];
    for (int i = 1; i < LANES / 8; ++i) total += parts[i];
    return total;
}

// Sum of the lanes, always in the same order.
inline float sum(vfloat v) {
    const eight e = fold(v);
    return ((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7]));
}

// The sums of the lanes of eight vectors.
inline eight sums(const vfloat* v) {
    eight a[8];
    for (int i = 0; i < 8; ++i) a[i] = fold(v[i]);
    for (int i = 0; i < 4; ++i)
        a[i] = GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
               GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    for (int i = 0; i < 2; ++i)
        a[i] = GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
               GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    return GSMAE_SHUFFLE(a[0], a[1], 0, 1, 2, 3, 8, 9, 10, 11) + GSMAE_SHUFFLE(a[0], a[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// Eight pixels of three interleaved channels, apart.
struct Channels {
    eight red, green, blue;
};

inline Channels load_channels(const float* p) {
    const eight a = load<eight>(p), b = load<eight>(p + 8), c = load<eight>(p + 16);
    const eight_ints first = {-1, 0, 0, -1, 0, 0, -1, 0}, second = {0, -1, 0, 0, -1, 0, 0, -1};
    const eight red = first ? a : (second ? b : c), green = second ? a : (first ? c : b), blue = first ? b : (second ? c : a);
    return {GSMAE_SHUFFLE(red, red, 0, 3, 6, 1, 4, 7, 2, 5), GSMAE_SHUFFLE(green, green, 1, 4, 7, 2, 5, 0, 3, 6),
            GSMAE_SHUFFLE(blue, blue, 2, 5, 0, 3, 6, 1, 4, 7)};
}

inline void store_channels(float* p, Channels v) {
    const eight red = GSMAE_SHUFFLE(v.red, v.red, 0, 3, 6, 1, 4, 7, 2, 5);
    const eight green = GSMAE_SHUFFLE(v.green, v.green, 5, 0, 3, 6, 1, 4, 7, 2);
    const eight blue = GSMAE_SHUFFLE(v.blue, v.blue, 2, 5, 0, 3, 6, 1, 4, 7);
    const eight_ints first = {-1, 0, 0, -1, 0, 0, -1, 0}, second = {0, -1, 0, 0, -1, 0, 0, -1};
    store(p, first ? red : (second ? green : blue));
    store(p + 8, first ? blue : (second ? red : green));
    store(p + 16, first ? green : (second ? blue : red));
}

// 2^x for x in [-126, 126], relative error below 2.5e-7: the nearest integer goes into the exponent, a minimax
// polynomial covers the rest. Outside that range the result is meaningless (mask it), but nothing traps.
inline vfloat exp2_in_range(vfloat x) {
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
    const vfloat shifted = x + shifter;
    const vfloat f = x - (shifted - shifter), ff = f * f;
    const vfloat high = 0.0013276472454890609f * f + 0.009675540961325169f;
    const vfloat middle = 0.05550713092088699f * f + 0.24022120237350464f;
    const vfloat low = 0.6931469440460205f * f + 1.0f;
    const vfloat p = (high * ff + middle) * ff + low;
    return (vfloat)((vint)p + ((vint)shifted << 23));
}

}  // namespace gsmae
