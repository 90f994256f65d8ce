// Gaussian splats to pictures and back: projection, sorting, binning into strips, blending, gradients.
//
// gsmae/ops/reference/splats.py defines the result. Every stage is a parallel loop over independent tasks, so the
// bytes of the result do not depend on the number of threads.
#include <algorithm>
#include <new>

#include "common.h"
#include "project.h"
#include "simd.h"
#include "splats.h"

namespace gsmae {
namespace {

// ---------------------------------------------------------------------------------------------------- projection

inline float clamped(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

// Writes the drawn splats of a block to `out` and their depths to `depths` (0 = not drawn).
void store_block(const Projection& r, const Block& b, const Inputs& in, int64_t first, Splat* out, float* depths) {
    const vfloat slope = r.cov_xy / r.cov_xx;
    const vfloat across = 0.5f * LOG2_E / r.cov_xx, along = 0.5f * LOG2_E * r.cov_xx / r.det;
    for (int l = 0; l < b.lanes; ++l) {
        depths[first + l] = 0.0f;
        if (!r.drawn[l]) continue;
        Splat s;
        s.x = r.centre_x[l], s.y = r.centre_y[l];
        s.slope = slope[l], s.across = across[l], s.along = along[l];
        s.peak = std::log2(b.opacity[l]);
        s.color[0] = std::max(r.color.x[l], 0.0f);
        s.color[1] = std::max(r.color.y[l], 0.0f);
        s.color[2] = std::max(r.color.z[l], 0.0f);
        const float reach = std::max(s.peak - LOG2_ALPHA_MIN, 0.0f) * (2.0f / LOG2_E);
        s.half_width = std::sqrt(reach * r.cov_xx[l]);
        s.half_height = std::sqrt(reach * r.cov_yy[l]);
        // Half a pixel is the distance from a pixel's edge to its centre; the rest is slack for rounding.
        const float wide = s.half_width * 1.0001f + 0.01f, tall = s.half_height * 1.0001f + 0.01f;
        const float left = s.x - wide - 0.5f, right = s.x + wide - 0.5f;
        const float top = s.y - tall - 0.5f, bottom = s.y + tall - 0.5f;
        if (!(right >= 0.0f && left <= in.width - 1.0f && bottom >= 0.0f && top <= in.height - 1.0f)) continue;
        const float last_x = in.width - 1.0f, last_y = in.height - 1.0f;
        s.first_column = int16_t(clamped(left, 0.0f, last_x) / PIXELS);
        s.last_column = int16_t(clamped(right, 0.0f, last_x) / PIXELS);
        s.first_band = int16_t(clamped(top, 0.0f, last_y) / STRIP);
        s.last_band = int16_t(clamped(bottom, 0.0f, last_y) / STRIP);
        s.depth = depths[first + l] = r.p.z[l];
        s.index = int32_t(first + l);
        out[first + l] = s;
    }
}

// Indices of positive depths, nearest first; ties go to the lower index. Depths are positive, so their bits are
// ordered like their values: a radix sort of three digits.
int64_t sort_by_depth(const float* depths, int64_t count, Buffer<int32_t>& order) {
    struct Key {
        uint32_t depth;
        int32_t index;
    };
    Buffer<Key> keys, spare;
    keys.allocate(count);
    spare.allocate(count);
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i)
        if (depths[i] > 0.0f) {
            uint32_t bits;
            std::memcpy(&bits, depths + i, 4);
            keys[n++] = {bits, int32_t(i)};
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
        std::swap(keys.data, spare.data);
    }
    order.allocate(n);
    for (int64_t i = 0; i < n; ++i) order[i] = keys[i].index;
    return n;
}

void sort_view(View& view, const Splat* projected, const float* depths, int64_t count) {
    Buffer<int32_t> order;
    const int64_t drawn = sort_by_depth(depths, count, order);
    view.splats.allocate(drawn);
    view.ranks.allocate(count);
    std::fill_n(view.ranks.data.get(), count, -1);
    for (int64_t rank = 0; rank < drawn; ++rank) {
        view.splats[rank] = projected[order[rank]];
        view.ranks[order[rank]] = int32_t(rank);
    }
}

// ------------------------------------------------------------------------------------------------------- binning

// Rows of a band that a splat's ellipse covers in one column of strips: [first, end), empty where first >= end.
struct Rows {
    int first, end;
};

inline Rows rows_in_column(const Splat& s, int column, int top, int rows) {
    // The ellipse between the first and last pixel centres of the column; its highest and lowest point lie at
    // dx = +-tip unless that is outside the column, and then at the nearer edge.
    const float reach = std::max(s.peak - LOG2_ALPHA_MIN, 0.0f);
    const float tip = s.half_height > 0.0f ? s.slope * (reach / s.across) / s.half_height : 0.0f;
    const float left = std::max(column * float(PIXELS) + 0.5f - s.x, -s.half_width);
    const float right = std::min(column * float(PIXELS) + (PIXELS - 0.5f) - s.x, s.half_width);
    const float low_x = clamped(-tip, left, right), high_x = clamped(tip, left, right);
    const float low_room = std::max(reach - s.across * low_x * low_x, 0.0f);
    const float high_room = std::max(reach - s.across * high_x * high_x, 0.0f);
    const float low = s.y + s.slope * low_x - std::sqrt(low_room / s.along);
    const float high = s.y + s.slope * high_x + std::sqrt(high_room / s.along);
    const float slack = 0.01f + 1e-5f * (std::abs(s.y) + std::abs(s.slope) * s.half_width + s.half_height);
    const float first = clamped(std::ceil(low - slack - 0.5f - top), 0.0f, float(rows));
    const float last = clamped(std::floor(high + slack - 0.5f - top), -1.0f, float(rows - 1));
    return {int(first), int(last) + 1};
}

// Fills one band: all pairs in the order of splats, then sorted by column.
void bin_band(const View& view, Band& band, int index, int columns, int height) {
    struct Entry {
        int32_t splat;
        int16_t column;
        uint8_t first_row, end_row;
    };
    const int top = index * STRIP, rows = std::min(STRIP, height - top);
    std::vector<Entry> entries;
    entries.reserve(view.splats.size * 4 + 16);
    std::vector<int32_t> starts(columns + 1, 0);
    band.first_number.allocate(view.splats.size + 1);
    for (int64_t rank = 0; rank < view.splats.size; ++rank) {
        band.first_number[rank] = int32_t(entries.size());
        const Splat& s = view.splats[rank];
        if (index < s.first_band || index > s.last_band) continue;
        for (int column = s.first_column; column <= s.last_column; ++column) {
            const Rows r = rows_in_column(s, column, top, rows);
            if (r.first >= r.end) continue;
            entries.push_back({int32_t(rank), int16_t(column), uint8_t(r.first), uint8_t(r.end)});
            ++starts[column + 1];
        }
    }
    band.first_number[view.splats.size] = int32_t(entries.size());

    for (int column = 0; column < columns; ++column) starts[column + 1] += starts[column];
    band.first_pair.allocate(columns + 1);
    std::copy(starts.begin(), starts.end(), band.first_pair.data.get());
    band.pairs.allocate(int64_t(entries.size()));
    for (size_t number = 0; number < entries.size(); ++number) {
        const Entry& e = entries[number];
        band.pairs[starts[e.column]++] = {e.splat, int32_t(number), e.first_row, e.end_row, 0};
    }
}

// ------------------------------------------------------------------------------------------------------ blending

constexpr int ROWS = LANES / PIXELS;  // rows in a vector
constexpr int GROUPS = STRIP / ROWS;  // vectors in a strip

// Where a strip lies, and the coordinates of its pixels.
struct Place {
    int left, top, columns, rows;  // columns and rows inside the picture
    vfloat x;
    alignas(64) float y[STRIP * PIXELS];

    Place(int column, int band, int width, int height) {
        left = column * PIXELS, top = band * STRIP;
        columns = std::min(PIXELS, width - left), rows = std::min(STRIP, height - top);
        for (int l = 0; l < LANES; ++l) x[l] = left + l % PIXELS + 0.5f;
        for (int i = 0; i < STRIP * PIXELS; ++i) y[i] = top + i / PIXELS + 0.5f;
    }
};

// The constants of a splat in a strip: log2(alpha) = peak - along * (y - middle)^2 in each column of pixels.
struct Section {
    vfloat dx, middle, peak, along;
    Section(const Splat& s, const Place& place) {
        dx = place.x - s.x;
        middle = s.slope * dx + s.y;
        peak = s.peak - s.across * (dx * dx);
        along = broadcast(s.along);
    }
};

// Copies pixels between a picture and the planes of a strip, one float per pixel or three.
inline void gather(const float* picture, int width, int channels, const Place& place, int channel, vfloat* plane) {
    float* out = reinterpret_cast<float*>(plane);
    for (int row = 0; row < place.rows; ++row) {
        const float* in = picture + (int64_t(place.top + row) * width + place.left) * channels + channel;
        for (int l = 0; l < place.columns; ++l) out[row * PIXELS + l] = in[l * channels];
    }
}

struct ForwardStrip {
    vfloat through[GROUPS];  // transmittance; negative once the pixel is finished
    vfloat color[3][GROUPS];
};

// Pixels outside the picture count as finished.
inline void start(vfloat* through, const Place& place) {
    float* t = reinterpret_cast<float*>(through);
    for (int i = 0; i < STRIP * PIXELS; ++i)
        t[i] = i / PIXELS < place.rows && i % PIXELS < place.columns ? 1.0f : -1.0f;
}

inline vint sign_bits() { return vint{} + INT32_MIN; }

// Blends one splat into the strip; returns whether a pixel took it. With WEIGHTS adds up what they took instead of
// colours.
template <bool WEIGHTS>
inline bool blend(const Splat& s, const Pair& pair, const Place& place, ForwardStrip& strip, vfloat& weights) {
    const Section section(s, place);
    const vfloat red = broadcast(s.color[0]), green = broadcast(s.color[1]), blue = broadcast(s.color[2]);
    vint taken = {};
    for (int g = pair.first_row / ROWS; g < (pair.end_row + ROWS - 1) / ROWS; ++g) {
        const vfloat u = load(place.y + g * LANES) - section.middle;
        const vfloat power = section.peak - section.along * u * u;
        const vfloat through = strip.through[g];
        const vfloat alpha = keep(power >= LOG2_ALPHA_MIN, vmin(exp2_in_range(power), broadcast(ALPHA_MAX)));
        const vfloat wanted = alpha * through, rest = through - wanted;
        const vint live = rest > TRANSMITTANCE_MIN;
        const vfloat weight = keep(live, wanted);
        strip.through[g] = select(live, rest, (vfloat)((vint)through | sign_bits()));
        taken |= (vint)weight;
        if (WEIGHTS) {
            weights += weight;
        } else {
            strip.color[0][g] += weight * red;
            strip.color[1][g] += weight * green;
            strip.color[2][g] += weight * blue;
        }
    }
    return any(taken);
}

void finish_strip(const ForwardStrip& strip, const Place& place, const Inputs& in, int view, float* colors,
                  float* alphas) {
    const float* through = reinterpret_cast<const float*>(strip.through);
    const float* planes[3];
    for (int c = 0; c < 3; ++c) planes[c] = reinterpret_cast<const float*>(strip.color[c]);
    for (int row = 0; row < place.rows; ++row) {
        const int64_t first = (int64_t(view) * in.height + place.top + row) * in.width + place.left;
        for (int l = 0; l < place.columns; ++l) {
            const int i = row * PIXELS + l;
            const float rest = std::abs(through[i]);
            alphas[first + l] = 1.0f - rest;
            for (int c = 0; c < 3; ++c) colors[3 * (first + l) + c] = planes[c][i] + rest * in.background[c];
        }
    }
}

void draw_strip(const Inputs& in, const View& view, Band& band, int v, int column, int index, float* colors,
                float* alphas) {
    const Place place(column, index, in.width, in.height);
    ForwardStrip strip;
    start(strip.through, place);
    for (auto& plane : strip.color) std::fill_n(plane, GROUPS, vfloat{});
    vfloat unused = {};
    for (int32_t p = band.first_pair[column]; p < band.first_pair[column + 1]; ++p) {
        Pair& pair = band.pairs[p];
        pair.drawn = blend<false>(view.splats[pair.splat], pair, place, strip, unused);
    }
    finish_strip(strip, place, in, v, colors, alphas);
}

// Adds up the blending weight of every pair of a strip, at the pair's number.
void weigh_strip(const Inputs& in, const View& view, const Band& band, int column, int index, float* weights) {
    const Place place(column, index, in.width, in.height);
    ForwardStrip strip;
    start(strip.through, place);
    for (int32_t p = band.first_pair[column]; p < band.first_pair[column + 1]; ++p) {
        const Pair& pair = band.pairs[p];
        vfloat total = {};
        blend<true>(view.splats[pair.splat], pair, place, strip, total);
        weights[pair.number] = sum(total);
    }
}

// ------------------------------------------------------------------------------------------- gradients of a strip

struct BackwardStrip {
    vfloat through[GROUPS];
    vfloat behind[GROUPS];  // what lies behind the splats taken so far, background included, times its gradient
    vfloat color[3][GROUPS], alpha[GROUPS];  // gradients of the picture
};

// Front to back again: the gradient of alpha_i is T_i c_i - (what lies behind i) / (1 - alpha_i), each weighted with
// the gradient of the pixel, and what lies behind is the finished pixel less what came before.
template <bool ALPHAS>
inline void blend_gradients(const Splat& s, const Pair& pair, const Place& place, BackwardStrip& strip, float* sums) {
    const Section section(s, place);
    const vfloat red = broadcast(s.color[0]), green = broadcast(s.color[1]), blue = broadcast(s.color[2]);
    vfloat one = {}, by_u = {}, by_u2 = {}, g_red = {}, g_green = {}, g_blue = {};
    for (int g = pair.first_row / ROWS; g < (pair.end_row + ROWS - 1) / ROWS; ++g) {
        const vfloat u = load(place.y + g * LANES) - section.middle;
        const vfloat power = section.peak - section.along * u * u;
        const vfloat through = strip.through[g];
        const vfloat value = exp2_in_range(power);
        const vint inside = power >= LOG2_ALPHA_MIN;
        const vfloat alpha = keep(inside, vmin(value, broadcast(ALPHA_MAX)));
        const vfloat wanted = alpha * through, rest = through - wanted;
        const vint live = rest > TRANSMITTANCE_MIN;
        const vfloat weight = keep(live, wanted);
        strip.through[g] = select(live, rest, (vfloat)((vint)through | sign_bits()));

        vfloat shade = red * strip.color[0][g] + green * strip.color[1][g] + blue * strip.color[2][g];
        if (ALPHAS) shade += strip.alpha[g];
        const vfloat behind = strip.behind[g] - weight * shade;
        strip.behind[g] = behind;
        g_red += weight * strip.color[0][g];
        g_green += weight * strip.color[1][g];
        g_blue += weight * strip.color[2][g];

        const vfloat slope = through * shade - behind / (1.0f - alpha);
        const vfloat d = keep(inside & live & (value <= ALPHA_MAX), value * slope);
        const vfloat du = d * u;
        one += d;
        by_u += du;
        by_u2 += du * u;
    }
    const vfloat by_dx = one * section.dx;
    const vfloat all[SUMS] = {one, by_dx, by_dx * section.dx, by_u, by_u * section.dx, by_u2, g_red, g_green, g_blue};
    for (int i = 0; i < SUMS; ++i) sums[i] = sum(all[i]);
}

// Gradients of one strip: sums of every pair at its number, and of the background.
void differentiate_strip(const Inputs& in, const View& view, const Band& band, int v, int column, int index,
                         const float* colors, const float* alphas, const float* g_colors, const float* g_alphas,
                         float* sums, float* g_background) {
    const Place place(column, index, in.width, in.height);
    BackwardStrip strip;
    start(strip.through, place);
    for (auto& plane : strip.color) std::fill_n(plane, GROUPS, vfloat{});
    std::fill_n(strip.behind, GROUPS, vfloat{});
    const int64_t first = int64_t(v) * in.height * in.width;
    vfloat plane[GROUPS] = {};
    for (int c = 0; c < 3; ++c) {
        gather(g_colors + 3 * first, in.width, 3, place, c, strip.color[c]);
        gather(colors + 3 * first, in.width, 3, place, c, plane);
        for (int g = 0; g < GROUPS; ++g) strip.behind[g] += plane[g] * strip.color[c][g];
    }
    if (g_alphas != nullptr) {
        std::fill_n(strip.alpha, GROUPS, vfloat{});
        gather(g_alphas + first, in.width, 1, place, 0, strip.alpha);
        gather(alphas + first, in.width, 1, place, 0, plane);
        for (int g = 0; g < GROUPS; ++g) strip.behind[g] += plane[g] * strip.alpha[g];
    }
    for (int32_t p = band.first_pair[column]; p < band.first_pair[column + 1]; ++p) {
        const Pair& pair = band.pairs[p];
        float* out = sums + int64_t(SUMS) * pair.number;
        if (!pair.drawn)
            std::fill_n(out, SUMS, 0.0f);
        else if (g_alphas != nullptr)
            blend_gradients<true>(view.splats[pair.splat], pair, place, strip, out);
        else
            blend_gradients<false>(view.splats[pair.splat], pair, place, strip, out);
    }
    for (int c = 0; c < 3; ++c) {
        vfloat total = {};
        for (int g = 0; g < GROUPS; ++g) total += select(strip.through[g] < 0.0f, -strip.through[g], strip.through[g]) * strip.color[c][g];
        g_background[c] = sum(total);
    }
}

// --------------------------------------------------------------------------------------------- gradients of splats

// Sums of one splat in one view over its pairs, in their order.
inline void add_pairs(const View& view, const std::vector<Buffer<float>>& sums, int32_t rank, float* total) {
    for (int i = 0; i < SUMS; ++i) total[i] = 0.0f;
    if (rank < 0) return;
    const Splat& s = view.splats[rank];
    for (int band = s.first_band; band <= s.last_band; ++band) {
        const Band& b = view.bands[band];
        const float* values = sums[band].data.get();
        for (int64_t number = b.first_number[rank]; number < b.first_number[rank + 1]; ++number)
            for (int i = 0; i < SUMS; ++i) total[i] += values[SUMS * number + i];
    }
}

void differentiate_block(const Inputs& in, const Scene& scene, const std::vector<std::vector<Buffer<float>>>& sums,
                         int64_t first, const Gradients& out) {
    const Block block = load_block(in, first);
    BlockGradients g;
    for (int v = 0; v < in.views; ++v) {
        const View& view = scene.views[v];
        alignas(64) float lanes[SUMS][LANES] = {};
        for (int l = 0; l < block.lanes; ++l) {
            float total[SUMS];
            add_pairs(view, sums[v], view.ranks[first + l], total);
            for (int i = 0; i < SUMS; ++i) lanes[i][l] = total[i];
        }
        const PixelSums s = {load(lanes[0]), load(lanes[1]), load(lanes[2]), load(lanes[3]), load(lanes[4]),
                             load(lanes[5]), {load(lanes[6]), load(lanes[7]), load(lanes[8])}};
        const float* offsets = in.offsets == nullptr ? nullptr : in.offsets + 2 * in.count * v;
        const Projection r = project(block, scene.cameras[v], in.sh_count, offsets, first);
        add_gradients(g, block, scene.cameras[v], r, s, in.sh_count);
        if (out.offsets != nullptr)
            for (int l = 0; l < block.lanes; ++l) {
                out.offsets[2 * (in.count * v + first + l)] = g.offset_x[l];
                out.offsets[2 * (in.count * v + first + l) + 1] = g.offset_y[l];
            }
    }
    for (int l = 0; l < block.lanes; ++l) {
        const int64_t i = first + l;
        float *mean = out.means + 3 * i, *quat = out.quats + 4 * i, *scale = out.scales + 3 * i;
        mean[0] = g.mean.x[l], mean[1] = g.mean.y[l], mean[2] = g.mean.z[l];
        quat[0] = g.w[l], quat[1] = g.x[l], quat[2] = g.y[l], quat[3] = g.z[l];
        scale[0] = g.scale.x[l], scale[1] = g.scale.y[l], scale[2] = g.scale.z[l];
        out.opacities[i] = g.opacity[l];
        for (int k = 0; k < in.sh_count; ++k) {
            float* sh = out.sh + 3 * (in.sh_count * i + k);
            sh[0] = g.sh[k].x[l], sh[1] = g.sh[k].y[l], sh[2] = g.sh[k].z[l];
        }
    }
}

// ---------------------------------------------------------------------------------------------------- whole calls

constexpr int64_t CHUNK = 256;  // splats in a task

void prepare(const Inputs& in, Scene& scene, int threads) {
    scene.columns = (in.width + PIXELS - 1) / PIXELS;
    scene.bands = (in.height + STRIP - 1) / STRIP;
    for (int v = 0; v < in.views; ++v)
        scene.cameras.emplace_back(in.viewmats + 16 * v, in.Ks + 9 * v, in.width, in.height);
    scene.views.resize(in.views);
    for (View& view : scene.views) view.bands.resize(scene.bands);

    Buffer<Splat> projected;
    Buffer<float> depths;
    projected.allocate(in.count * in.views);
    depths.allocate(in.count * in.views);
    parallel_for((in.count + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk) {
        for (int64_t first = chunk * CHUNK; first < std::min(in.count, (chunk + 1) * CHUNK); first += LANES) {
            const Block block = load_block(in, first);
            for (int v = 0; v < in.views; ++v) {
                const float* offsets = in.offsets == nullptr ? nullptr : in.offsets + 2 * in.count * v;
                const Projection r = project(block, scene.cameras[v], in.sh_count, offsets, first);
                store_block(r, block, in, first, projected.data.get() + v * in.count, depths.data.get() + v * in.count);
            }
        }
    });
    parallel_for(in.views, threads, [&](int64_t v) {
        sort_view(scene.views[v], projected.data.get() + v * in.count, depths.data.get() + v * in.count, in.count);
    });
    parallel_for(int64_t(in.views) * scene.bands, threads, [&](int64_t i) {
        View& view = scene.views[i / scene.bands];
        bin_band(view, view.bands[i % scene.bands], int(i % scene.bands), scene.columns, in.height);
    });
}

// Calls body(view, band, column) for every strip.
template <class Body>
void for_strips(const Inputs& in, const Scene& scene, int threads, const Body& body) {
    const int64_t strips = int64_t(scene.bands) * scene.columns;
    parallel_for(in.views * strips, threads, [&](int64_t i) {
        const int strip = int(i % strips);
        body(int(i / strips), strip / scene.columns, strip % scene.columns);
    });
}

std::vector<std::vector<Buffer<float>>> pair_buffers(const Scene& scene, int width) {
    std::vector<std::vector<Buffer<float>>> buffers(scene.views.size());
    for (size_t v = 0; v < buffers.size(); ++v) {
        buffers[v].resize(scene.bands);
        for (int b = 0; b < scene.bands; ++b) buffers[v][b].allocate(scene.views[v].bands[b].pairs.size * width);
    }
    return buffers;
}

void add_contributions(const Inputs& in, const Scene& scene, int threads, double* out) {
    auto weights = pair_buffers(scene, 1);
    for_strips(in, scene, threads, [&](int v, int band, int column) {
        const View& view = scene.views[v];
        weigh_strip(in, view, view.bands[band], column, band, weights[v][band].data.get());
    });
    parallel_for((in.count + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk) {
        for (int64_t i = chunk * CHUNK; i < std::min(in.count, (chunk + 1) * CHUNK); ++i)
            for (int v = 0; v < in.views; ++v) {
                const View& view = scene.views[v];
                const int32_t rank = view.ranks[i];
                if (rank < 0) continue;
                for (int band = view.splats[rank].first_band; band <= view.splats[rank].last_band; ++band) {
                    const Buffer<int32_t>& numbers = view.bands[band].first_number;
                    for (int64_t n = numbers[rank]; n < numbers[rank + 1]; ++n) out[i] += weights[v][band][n];
                }
            }
    });
}

void differentiate(const Inputs& in, const Scene& scene, const float* colors, const float* alphas,
                   const float* g_colors, const float* g_alphas, const Gradients& out, int threads) {
    auto sums = pair_buffers(scene, SUMS);
    const int64_t strips = int64_t(scene.bands) * scene.columns;
    Buffer<float> background;
    background.allocate(3 * strips * in.views);
    for_strips(in, scene, threads, [&](int v, int band, int column) {
        const View& view = scene.views[v];
        differentiate_strip(in, view, view.bands[band], v, column, band, colors, alphas, g_colors, g_alphas,
                            sums[v][band].data.get(),
                            background.data.get() + 3 * (v * strips + band * scene.columns + column));
    });
    double totals[3] = {};
    for (int64_t i = 0; i < background.size; ++i) totals[i % 3] += background[i];
    for (int c = 0; c < 3; ++c) out.background[c] = float(totals[c]);
    parallel_for((in.count + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk) {
        for (int64_t first = chunk * CHUNK; first < std::min(in.count, (chunk + 1) * CHUNK); first += LANES)
            differentiate_block(in, scene, sums, first, out);
    });
}

}  // namespace
}  // namespace gsmae

using namespace gsmae;

#define SPLAT_INPUTS                                                                                              \
    int64_t count, int32_t sh_count, const float *means, const float *quats, const float *scales,                 \
        const float *opacities, const float *sh, int32_t views, const float *viewmats, const float *Ks,           \
        const float *offsets, int32_t width, int32_t height, const float *background
#define SPLAT_INPUT_VALUES \
    {count, sh_count, means, quats, scales, opacities, sh, views, viewmats, Ks, offsets, width, height, background}

// Draws colors [V, H, W, 3] and alphas [V, H, W]. Where `scene` is not null it receives what gsmae_splats_backward
// needs, to be released with gsmae_splats_free. Returns 0, or 1 when memory ran out.
GSMAE_API int32_t gsmae_splats_forward(SPLAT_INPUTS, float* colors, float* alphas, void** scene, int32_t threads) {
    try {
        const Inputs in = SPLAT_INPUT_VALUES;
        auto made = std::make_unique<Scene>();
        prepare(in, *made, threads);
        for_strips(in, *made, threads, [&](int v, int band, int column) {
            View& view = made->views[v];
            draw_strip(in, view, view.bands[band], v, column, band, colors, alphas);
        });
        if (scene != nullptr) *scene = made.release();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Gradients of everything that gsmae_splats_forward drew from the same inputs. `g_alphas` and `g_offsets` may be
// null, the others are required. Returns 0, or 1 when memory ran out.
GSMAE_API int32_t gsmae_splats_backward(const void* scene, SPLAT_INPUTS, const float* colors, const float* alphas,
                                        const float* g_colors, const float* g_alphas, float* g_means, float* g_quats,
                                        float* g_scales, float* g_opacities, float* g_sh, float* g_offsets,
                                        float* g_background, int32_t threads) {
    try {
        const Inputs in = SPLAT_INPUT_VALUES;
        const Gradients out = {g_means, g_quats, g_scales, g_opacities, g_sh, g_offsets, g_background};
        differentiate(in, *static_cast<const Scene*>(scene), colors, alphas, g_colors, g_alphas, out, threads);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

GSMAE_API void gsmae_splats_free(void* scene) { delete static_cast<Scene*>(scene); }

// Adds to out [N] the blending weights of every splat, summed over views and pixels.
GSMAE_API int32_t gsmae_splats_contributions(SPLAT_INPUTS, double* out, int32_t threads) {
    try {
        const Inputs in = SPLAT_INPUT_VALUES;
        Scene scene;
        prepare(in, scene, threads);
        add_contributions(in, scene, threads, out);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
