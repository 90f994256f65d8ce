// Which splats a strip must blend, in which order.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "simd.h"
#include "splats.h"

namespace gsmae {

inline float clamped(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

// Indices of positive depths, nearest first; ties go to the lower index. The bits of positive floats are ordered like
// their values: a radix sort of three digits.
inline Buffer<int32_t> sort_by_depth(const float* depths, int64_t count) {
    struct Key {
        uint32_t depth;
        int32_t index;
    };
    Buffer<Key> keys(count), spare(count);
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i)
        if (depths[i] > 0.0f) {
            std::memcpy(&keys[n].depth, depths + i, 4);
            keys[n++].index = int32_t(i);
        }
    constexpr int DIGIT = 11, VALUES = 1 << DIGIT;
    std::vector<int32_t> starts(VALUES);
    for (int shift = 0; shift < 32; shift += DIGIT) {
        std::fill(starts.begin(), starts.end(), 0);
        for (int64_t i = 0; i < n; ++i) ++starts[(keys[i].depth >> shift) & (VALUES - 1)];
        int32_t total = 0;
        for (int32_t& start : starts) {
            const int32_t here = start;
            start = total;
            total += here;
        }
        for (int64_t i = 0; i < n; ++i) spare[starts[(keys[i].depth >> shift) & (VALUES - 1)]++] = keys[i];
        std::swap(keys, spare);
    }
    Buffer<int32_t> order(n);
    for (int64_t i = 0; i < n; ++i) order[i] = keys[i].index;
    return order;
}

inline void sort_view(View& view, const Splat* projected, const float* depths, int64_t count) {
    const Buffer<int32_t> order = sort_by_depth(depths, count);
    view.splats = Buffer<Splat>(order.size);
    view.reaches = Buffer<Reach>(count);
    std::fill_n(view.reaches.data.get(), count, Reach{0, -1});
    for (int64_t rank = 0; rank < order.size; ++rank) {
        view.splats[rank] = projected[order[rank]];
        view.reaches[order[rank]] = view.splats[rank].bands;
    }
}

// Rows of a band that a splat's ellipse covers in LANES columns of strips: [first, end), empty where first >= end.
struct Rows {
    vint first, end;
};

inline Rows rows_in_columns(const Splat& s, int first_column, int top, int rows) {
    // The ellipse between the first and last pixel centres of each column. Its highest and lowest point lie at
    // dx = +-tip, unless that is outside the column: then at the nearer edge.
    const float reach = std::max(s.peak - LOG2_ALPHA_MIN, 0.0f);
    const float tip = s.half_height > 0.0f ? s.slope * (reach / s.across) / s.half_height : 0.0f;
    vfloat left;
    for (int l = 0; l < LANES; ++l) left[l] = float(l * PIXELS);
    left += float(first_column) * PIXELS + 0.5f - s.x;
    const vfloat right = vmin(left + float(PIXELS - 1), broadcast(s.half_width));
    left = vmax(left, broadcast(-s.half_width));
    const vint beside = left > right;
    const vfloat low_x = vmin(vmax(broadcast(-tip), left), right), high_x = vmin(vmax(broadcast(tip), left), right);
    const vfloat zero = {}, low_room = vmax(reach - s.across * low_x * low_x, zero);
    const vfloat high_room = vmax(reach - s.across * high_x * high_x, zero);
    const float squeeze = 1.0f / s.along, base = s.y - 0.5f - float(top);
    const float slack = 0.01f + 1e-5f * (std::abs(s.y) + std::abs(s.slope) * s.half_width + s.half_height);
    const vfloat low = base - slack + s.slope * low_x - vsqrt(low_room * squeeze);
    const vfloat high = base + slack + s.slope * high_x + vsqrt(high_room * squeeze);
    // Rows ceil(low) to floor(high), by truncation of numbers that are not negative.
    const vfloat limit = broadcast(float(rows)), from = vmin(vmax(low, zero), limit);
    const vint whole = to_int(from);
    const vint first = whole - (to_float(whole) < from);
    const vint end = to_int(vmin(vmax(high + 1.0f, zero), limit));
    return {first, beside ? first : end};
}

// Fills one band.
inline void bin_band(const View& view, Band& band, int index, int columns, int height) {
    struct Entry {
        int32_t rank, splat;
        int16_t column;
        uint8_t first_row, end_row;
    };
    const int top = index * STRIP, rows = std::min(STRIP, height - top);
    const int64_t splats = view.reaches.size;
    Buffer<Entry> entries(2 * view.splats.size + columns + LANES);
    Buffer<int32_t> starts(columns + 1);
    std::fill_n(starts.data.get(), starts.size, 0);
    band.first_number = Buffer<int32_t>(splats + 1);
    int32_t* numbers = band.first_number.data.get();
    std::fill_n(numbers, splats + 1, 0);
    int64_t count = 0;
    for (int64_t rank = 0; rank < view.splats.size; ++rank) {
        const Splat& s = view.splats[rank];
        if (index < s.bands.first || index > s.bands.last) continue;
        if (count + columns > entries.size) entries.grow(2 * entries.size, count);
        const int64_t before = count;
        for (int first = s.first_column; first <= s.last_column; first += LANES) {
            const Rows r = rows_in_columns(s, first, top, rows);
            for (int l = 0; l < std::min(LANES, s.last_column + 1 - first); ++l) {
                if (r.first[l] >= r.end[l]) continue;
                entries[count++] = {int32_t(rank), s.index, int16_t(first + l), uint8_t(r.first[l]), uint8_t(r.end[l])};
                ++starts[first + l + 1];
            }
        }
        numbers[s.index + 1] = int32_t(count - before);
    }
    for (int64_t i = 0; i < splats; ++i) numbers[i + 1] += numbers[i];

    for (int column = 0; column < columns; ++column) starts[column + 1] += starts[column];
    band.first_pair = Buffer<int32_t>(columns + 1);
    std::copy_n(starts.data.get(), columns + 1, band.first_pair.data.get());
    band.pairs = Buffer<Pair>(count);
    int32_t number = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Entry& e = entries[i];
        number = i > 0 && entries[i - 1].splat == e.splat ? number + 1 : numbers[e.splat];
        band.pairs[starts[e.column]++] = {e.rank, number, e.first_row, e.end_row, 0};
    }
}

}  // namespace gsmae
