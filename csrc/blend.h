// Blending the splats of a strip, and the gradients of it.
//
// The loops over the pixels of a splat come in parts, each with a short chain of dependent operations, and hand over
// arrays: processors find more to do at once in two short chains than in one long one (a third faster, measured).
#pragma once

#include <algorithm>
#include <cstring>

#include "simd.h"
#include "splats.h"

namespace gsmae {

constexpr int ROWS = LANES / PIXELS;  // rows of a strip in a vector: a group of pixels
constexpr int GROUPS = STRIP / ROWS;  // groups in a strip

// Where a strip lies, and the coordinates of its pixels.
struct Place {
    int left, top, columns, rows;  // columns and rows inside the picture
    vfloat x, y[GROUPS];

    Place(int column, int band, int width, int height) {
        left = column * PIXELS, top = band * STRIP;
        columns = std::min(PIXELS, width - left), rows = std::min(STRIP, height - top);
        vfloat row;
        for (int l = 0; l < LANES; ++l) {
            x[l] = float(left + l % PIXELS) + 0.5f;
            row[l] = float(top + l / PIXELS) + 0.5f;
        }
        for (int g = 0; g < GROUPS; ++g) y[g] = row + float(g * ROWS);
    }
};

// A splat in a strip: log2(alpha) = peak - along * (y - middle)^2 in each column of pixels, in groups [first, end).
struct Section {
    vfloat dx, middle, peak, along;
    int first, end;
    Section(const Splat& s, const Pair& pair, const Place& place) {
        dx = place.x - s.x;
        middle = s.slope * dx + s.y;
        peak = s.peak - s.across * (dx * dx);
        along = broadcast(s.along);
        first = pair.first_row / ROWS;
        end = (pair.end_row + ROWS - 1) / ROWS;
    }
};

// Alpha before its clamp; 0 below the cut.
inline void evaluate(const Section& section, const Place& place, vfloat* values) {
    for (int g = section.first; g < section.end; ++g) {
        const vfloat u = place.y[g] - section.middle;
        const vfloat power = section.peak - section.along * u * u;
        values[g] = keep(power >= LOG2_ALPHA_MIN, exp2_in_range(power));
    }
}

// Calls body(first, lane) for the rows of a strip: index of their first pixel in a picture of this width, and where
// that pixel lies in a plane of the strip.
template <class Body>
inline void for_rows(const Place& place, int width, const Body& body) {
    for (int row = 0; row < place.rows; ++row)
        body(int64_t(place.top + row) * width + place.left, row / ROWS, row % ROWS * PIXELS);
}

// The pixels of a row of colours, with zeros beyond the picture.
inline Channels load_pixels(const float* p, int columns) {
    if (columns == PIXELS) return load_channels(p);
    float row[3 * PIXELS] = {};
    std::copy_n(p, 3 * columns, row);
    return load_channels(row);
}

inline void store_pixels(float* p, int columns, Channels values) {
    if (columns == PIXELS) return store_channels(p, values);
    float row[3 * PIXELS];
    store_channels(row, values);
    std::copy_n(row, 3 * columns, p);
}

// The row of pixels that begins at a lane of a group.
inline vpixels& row_of(vfloat& group, int lane) {
    return *reinterpret_cast<vpixels*>(reinterpret_cast<float*>(&group) + lane);
}

// Calls body(splat, pair) for the pairs of a strip, nearest first. Splats and sums lie apart in memory: they are sent
// for early. `sums` may be null, or has `width` floats for each pair of the band.
template <class Pairs, class Body>
inline void for_pairs(const View& view, Pairs& pairs, int32_t first, int32_t end, const float* sums, int width,
                      const Body& body) {
    constexpr int32_t AHEAD = 6;
    for (int32_t i = first; i < end; ++i) {
        const Pair& later = pairs[std::min(i + AHEAD, end - 1)];
        __builtin_prefetch(&view.splats[later.splat]);
        if (sums != nullptr) {
            const float* place = sums + int64_t(width) * later.number;
            __builtin_prefetch(place, 1);
            __builtin_prefetch(place + width - 1, 1);
        }
        body(view.splats[pairs[i].splat], pairs[i]);
    }
}

// ------------------------------------------------------------------------------------------------------- pictures

// Transmittance of a pixel is positive while it is open and negative once it is finished.
inline vfloat finish(vfloat through) { return (vfloat)((vint)through | INT32_MIN); }

struct Pixels {  // a group; kept together because planes at multiples of 4 KiB would look alike to the store buffer
    vfloat through, red, green, blue;
};

// All zero but the transmittance: 1, and for pixels outside the picture that of a finished one.
template <class Group>
void open_strip(Group (&strip)[GROUPS], const Place& place) {
    std::memset(strip, 0, sizeof strip);
    for (int g = 0; g < GROUPS; ++g)
        for (int l = 0; l < LANES; ++l)
            strip[g].through[l] = l % PIXELS < place.columns && g * ROWS + l / PIXELS < place.rows ? 1.0f : -1.0f;
}

// Blends one splat into the strip; returns whether it changed a pixel, be it only to finish it. With WEIGHTS adds up
// the weights instead of colours.
template <bool WEIGHTS>
inline bool blend(const Splat& s, const Pair& pair, const Place& place, Pixels* strip, vfloat& weights) {
    const Section section(s, pair, place);
    vfloat values[GROUPS];
    evaluate(section, place, values);
    const vfloat red = broadcast(s.color[0]), green = broadcast(s.color[1]), blue = broadcast(s.color[2]);
    vint touched = {};
    for (int g = section.first; g < section.end; ++g) {
        Pixels& p = strip[g];
        const vfloat alpha = vmin(values[g], broadcast(ALPHA_MAX));
        const vfloat wanted = alpha * p.through, rest = p.through - wanted;
        const vint live = rest > TRANSMITTANCE_MIN;
        const vfloat weight = keep(live, wanted), after = select(live, rest, finish(p.through));
        touched |= (vint)after ^ (vint)p.through;
        p.through = after;
        if (WEIGHTS) {
            weights += weight;
        } else {
            p.red += weight * red;
            p.green += weight * green;
            p.blue += weight * blue;
        }
    }
    return any(touched);
}

// Which groups of a strip have a pixel that is open, as bits.
inline uint64_t open_groups(const Pixels* strip) {
    static_assert(GROUPS <= 64, "a bit for each group");
    uint64_t open = 0;
    for (int g = 0; g < GROUPS; ++g) open |= uint64_t(any(strip[g].through > 0.0f)) << g;
    return open;
}

// Cuts the rows of a pair that lie in finished groups off its ends; false where none is left.
inline bool narrow(Pair& pair, uint64_t open) {
    const int first = pair.first_row / ROWS, end = (pair.end_row + ROWS - 1) / ROWS;
    const uint64_t rows = (~uint64_t(0) >> (64 - end) >> first << first) & open;
    if (rows == 0) return false;
    pair.first_row = uint8_t(std::max(int(pair.first_row), __builtin_ctzll(rows) * ROWS));
    pair.end_row = uint8_t(std::min(int(pair.end_row), (64 - __builtin_clzll(rows)) * ROWS));
    return true;
}

// Blends all pairs of a strip: calls add(splat, pair), which says whether it changed a pixel, for those in sight. What
// is open is found out anew whenever a splat was hidden: never where all is transparent, often behind a surface.
template <class Pairs, class Add>
inline void blend_pairs(const View& view, Pairs& pairs, int32_t first, int32_t end, const Pixels* strip,
                        const float* sums, const Add& add) {
    uint64_t open = ~uint64_t(0);
    for_pairs(view, pairs, first, end, sums, 1, [&](const Splat& s, Pair& pair) {
        pair.drawn = narrow(pair, open);
        if (!pair.drawn) return;
        pair.drawn = add(s, pair);
        if (!pair.drawn) open = open_groups(strip);
    });
}

// `colors` and `alphas` are those of the view.
inline void draw_strip(const Inputs& in, const View& view, Band& band, int column, int index, float* colors,
                       float* alphas) {
    const Place place(column, index, in.width, in.height);
    Pixels strip[GROUPS];
    open_strip(strip, place);
    vfloat unused = {};
    blend_pairs(view, band.pairs, band.first_pair[column], band.first_pair[column + 1], strip, nullptr,
                [&](const Splat& s, const Pair& pair) { return blend<false>(s, pair, place, strip, unused); });
    for (Pixels& p : strip) {
        p.through = vmax(p.through, -p.through);
        p.red += p.through * in.background[0];
        p.green += p.through * in.background[1];
        p.blue += p.through * in.background[2];
        p.through = 1.0f - p.through;
    }
    for_rows(place, in.width, [&](int64_t first, int group, int lane) {
        Pixels& p = strip[group];
        const Channels color = {row_of(p.red, lane), row_of(p.green, lane), row_of(p.blue, lane)};
        store_pixels(colors + 3 * first, place.columns, color);
        std::memcpy(alphas + first, &row_of(p.through, lane), sizeof(float) * place.columns);
    });
}

// Adds up the blending weight of every pair of a strip, at the pair's number in `weights`, which are zero before.
inline void weigh_strip(const Inputs& in, const View& view, Band& band, int column, int index, float* weights) {
    const Place place(column, index, in.width, in.height);
    Pixels strip[GROUPS];
    open_strip(strip, place);
    blend_pairs(view, band.pairs, band.first_pair[column], band.first_pair[column + 1], strip, weights,
                [&](const Splat& s, const Pair& pair) {
                    vfloat total = {};
                    const bool drawn = blend<true>(s, pair, place, strip, total);
                    weights[pair.number] = sum(total);
                    return drawn;
                });
}

// ------------------------------------------------------------------------------------------------------ gradients

struct PixelGradients {
    vfloat through;
    vfloat behind;  // what lies behind the splats taken so far, background included, times its gradient
    vfloat red, green, blue, alpha;  // gradients of the picture
};

// Sums over pixels of d = dL/d(log alpha), with dx and u as in Splat, and the gradient of the colour.
enum Sum { ONE, DX, DX2, U, UDX, U2, RED, GREEN, BLUE, SUMS };

// Front to back again: the gradient of alpha_i is T_i c_i - (what lies behind i) / (1 - alpha_i), each weighted with
// the gradient of the pixel, and what lies behind is the finished pixel less what came before.
template <bool ALPHAS>
inline void blend_gradients(const Splat& s, const Pair& pair, const Place& place, PixelGradients* strip, float* out) {
    const Section section(s, pair, place);
    vfloat values[GROUPS];  // alpha, then d
    evaluate(section, place, values);
    const vfloat red = broadcast(s.color[0]), green = broadcast(s.color[1]), blue = broadcast(s.color[2]);
    vfloat g_red = {}, g_green = {}, g_blue = {};
    for (int g = section.first; g < section.end; ++g) {
        PixelGradients& p = strip[g];
        const vfloat value = values[g], through = p.through, alpha = vmin(value, broadcast(ALPHA_MAX));
        const vfloat wanted = alpha * through, rest = through - wanted;
        const vint live = rest > TRANSMITTANCE_MIN;
        const vfloat weight = keep(live, wanted);
        p.through = select(live, rest, finish(through));
        vfloat shade = red * p.red + green * p.green + blue * p.blue;
        if (ALPHAS) shade += p.alpha;
        p.behind -= weight * shade;
        g_red += weight * p.red;
        g_green += weight * p.green;
        g_blue += weight * p.blue;
        const vfloat slope = through * shade - p.behind / (1.0f - alpha);
        values[g] = keep(live & (value <= ALPHA_MAX), value * slope);
    }
    vfloat one = {}, by_u = {}, by_u2 = {};
    for (int g = section.first; g < section.end; ++g) {
        const vfloat u = place.y[g] - section.middle, du = values[g] * u;
        one += values[g];
        by_u += du;
        by_u2 += du * u;
    }
    const vfloat by_dx = one * section.dx;
    const vfloat all[8] = {one, by_dx, by_dx * section.dx, by_u, by_u * section.dx, by_u2, g_red, g_green};
    store_sums(out, all);
    out[BLUE] = sum(g_blue);
}

// Gradients of one strip: sums of every pair at its number, and of the background. The pictures are those of the view.
inline void differentiate_strip(const Inputs& in, const View& view, const Band& band, int column, int index,
                                const float* colors, const float* alphas, const float* g_colors, const float* g_alphas,
                                float* sums_of_pairs, float* g_background) {
    const Place place(column, index, in.width, in.height);
    PixelGradients strip[GROUPS];
    open_strip(strip, place);
    for_rows(place, in.width, [&](int64_t first, int group, int lane) {
        PixelGradients& p = strip[group];
        const Channels color = load_pixels(colors + 3 * first, place.columns);
        const Channels g = load_pixels(g_colors + 3 * first, place.columns);
        row_of(p.red, lane) = g.red, row_of(p.green, lane) = g.green, row_of(p.blue, lane) = g.blue;
        row_of(p.behind, lane) = color.red * g.red + color.green * g.green + color.blue * g.blue;
        if (g_alphas != nullptr)
            for (int l = 0; l < place.columns; ++l) {
                p.alpha[lane + l] = g_alphas[first + l];
                p.behind[lane + l] += alphas[first + l] * g_alphas[first + l];
            }
    });
    const auto add = [&](const Splat& s, const Pair& pair) {
        float* out = sums_of_pairs + int64_t(SUMS) * pair.number;
        if (!pair.drawn)
            std::fill_n(out, int(SUMS), 0.0f);
        else if (g_alphas != nullptr)
            blend_gradients<true>(s, pair, place, strip, out);
        else
            blend_gradients<false>(s, pair, place, strip, out);
    };
    for_pairs(view, band.pairs, band.first_pair[column], band.first_pair[column + 1], sums_of_pairs, SUMS, add);
    vfloat total[3] = {};
    for (const PixelGradients& p : strip) {
        const vfloat through = vmax(p.through, -p.through);
        total[0] += through * p.red;
        total[1] += through * p.green;
        total[2] += through * p.blue;
    }
    for (int c = 0; c < 3; ++c) g_background[c] = sum(total[c]);
}

}  // namespace gsmae
