// Vectors of LANES floats on the compiler's own vector extension, so that one source serves every instruction set:
// arithmetic, comparison (giving all-ones or all-zero integers) and `mask ? a : b` come with the language.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// GCC takes comparisons of vectors that are wider than the machine's apart into single floats, so LANES must fit it.
#ifndef GSMAE_LANES
#ifdef __AVX__
#define GSMAE_LANES 8
#else
#define GSMAE_LANES 4
#endif
#endif

namespace gsmae {

constexpr int LANES = GSMAE_LANES;
typedef float vfloat __attribute__((vector_size(4 * GSMAE_LANES)));
typedef int32_t vint __attribute__((vector_size(4 * GSMAE_LANES)));

// Neighbouring pixels of a row: eight, or as many as LANES allows.
constexpr int PIXELS = LANES < 8 ? LANES : 8;
#if GSMAE_LANES == 4
typedef vfloat vpixels;
typedef vint vpixels_int;
#else
typedef float vpixels __attribute__((vector_size(32)));
typedef int32_t vpixels_int __attribute__((vector_size(32)));
#endif
#ifdef __clang__
#define GSMAE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GSMAE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (::gsmae::vpixels_int){__VA_ARGS__})
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

// Adds the rows of pixels in a vector.
inline vpixels fold(vfloat v) {
    vpixels parts[LANES / PIXELS], total;
    std::memcpy(parts, &v, sizeof v);
    total = parts[0];
    for (int i = 1; i < LANES / PIXELS; ++i) total += parts[i];
    return total;
}

// A row of pixels of three interleaved channels, apart.
struct Channels {
    vpixels red, green, blue;
};

#if GSMAE_LANES == 4

inline float sum(vfloat v) { return (v[0] + v[2]) + (v[1] + v[3]); }

// The sums of the lanes of eight vectors.
inline void store_sums(float* out, const vfloat* v) {
    for (int i = 0; i < 8; ++i) out[i] = sum(v[i]);
}

inline Channels load_channels(const float* p) {
    return {vpixels{p[0], p[3], p[6], p[9]}, vpixels{p[1], p[4], p[7], p[10]}, vpixels{p[2], p[5], p[8], p[11]}};
}

inline void store_channels(float* p, Channels v) {
    for (int i = 0; i < PIXELS; ++i) p[3 * i] = v.red[i], p[3 * i + 1] = v.green[i], p[3 * i + 2] = v.blue[i];
}

#else

// Sum of the lanes, always in the same order.
inline float sum(vfloat v) {
    const vpixels e = fold(v);
    return ((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7]));
}

// The sums of the lanes of eight vectors.
inline void store_sums(float* out, const vfloat* v) {
    vpixels a[8];
    for (int i = 0; i < 8; ++i) a[i] = fold(v[i]);
    for (int i = 0; i < 4; ++i)
        a[i] = GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
               GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    for (int i = 0; i < 2; ++i)
        a[i] = GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
               GSMAE_SHUFFLE(a[2 * i], a[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    store(out, GSMAE_SHUFFLE(a[0], a[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                   GSMAE_SHUFFLE(a[0], a[1], 4, 5, 6, 7, 12, 13, 14, 15));
}

// Where the first and the second of three consecutive vectors hold the channel that lane 0 or 1 begins with.
constexpr vpixels_int FIRST = {-1, 0, 0, -1, 0, 0, -1, 0}, SECOND = {0, -1, 0, 0, -1, 0, 0, -1};

inline Channels load_channels(const float* p) {
    const vpixels a = load<vpixels>(p), b = load<vpixels>(p + 8), c = load<vpixels>(p + 16);
    const vpixels red = FIRST ? a : (SECOND ? b : c);
    const vpixels green = SECOND ? a : (FIRST ? c : b);
    const vpixels blue = FIRST ? b : (SECOND ? c : a);
    return {GSMAE_SHUFFLE(red, red, 0, 3, 6, 1, 4, 7, 2, 5), GSMAE_SHUFFLE(green, green, 1, 4, 7, 2, 5, 0, 3, 6),
            GSMAE_SHUFFLE(blue, blue, 2, 5, 0, 3, 6, 1, 4, 7)};
}

inline void store_channels(float* p, Channels v) {
    const vpixels red = GSMAE_SHUFFLE(v.red, v.red, 0, 3, 6, 1, 4, 7, 2, 5);
    const vpixels green = GSMAE_SHUFFLE(v.green, v.green, 5, 0, 3, 6, 1, 4, 7, 2);
    const vpixels blue = GSMAE_SHUFFLE(v.blue, v.blue, 2, 5, 0, 3, 6, 1, 4, 7);
    store(p, FIRST ? red : (SECOND ? green : blue));
    store(p + 8, FIRST ? blue : (SECOND ? red : green));
    store(p + 16, FIRST ? green : (SECOND ? blue : red));
}

#endif

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
