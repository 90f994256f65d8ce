// Gaussian splats to pictures and back: projection, sorting, binning into strips, blending, gradients.
//
// gsmae/ops/reference/splats.py defines the result. Every stage is a parallel loop over independent tasks, so the
// bytes of the result do not depend on the number of threads.
#include <algorithm>
#include <new>

#include "bin.h"
#include "blend.h"
#include "common.h"
#include "project.h"
#include "simd.h"
#include "splats.h"

namespace gsmae {
namespace {

// ---------------------------------------------------------------------------------------------------- projection

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
        s.bands = {int16_t(clamped(top, 0.0f, last_y) / STRIP), int16_t(clamped(bottom, 0.0f, last_y) / STRIP)};
        s.depth = depths[first + l] = r.p.z[l];
        s.index = int32_t(first + l);
        out[first + l] = s;
    }
}

// --------------------------------------------------------------------------------------------- gradients of splats

// Sums of one splat in one view over its pairs, in their order.
inline void add_pairs(const View& view, const std::vector<Buffer<float>>& sums_of_bands, int64_t index, float* total) {
    for (int i = 0; i < SUMS; ++i) total[i] = 0.0f;
    for (int band = view.reaches[index].first; band <= view.reaches[index].last; ++band) {
        const Buffer<int32_t>& numbers = view.bands[band].first_number;
        const float* values = sums_of_bands[band].data.get() + int64_t(SUMS) * numbers[index];
        for (int32_t n = numbers[index]; n < numbers[index + 1]; ++n, values += SUMS)
            for (int i = 0; i < SUMS; ++i) total[i] += values[i];
    }
}

void differentiate_block(const Inputs& in, const Scene& scene, const std::vector<std::vector<Buffer<float>>>& sums,
                         int64_t first, const Gradients& out) {
    const Block block = load_block(in, first);
    BlockGradients g;
    for (int v = 0; v < in.views; ++v) {
        const View& view = scene.views[v];
        vfloat s[SUMS] = {};
        for (int l = 0; l < block.lanes; ++l) {
            float total[SUMS];
            add_pairs(view, sums[v], first + l, total);
            for (int i = 0; i < SUMS; ++i) s[i][l] = total[i];
        }
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

    Buffer<Splat> projected(in.count * in.views);
    Buffer<float> depths(in.count * in.views);
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
        for (const Band& band : scene.views[v].bands) buffers[v].emplace_back(band.pairs.size * width);
    }
    return buffers;
}

void add_contributions(const Inputs& in, Scene& scene, int threads, double* out) {
    auto weights = pair_buffers(scene, 1);
    for (auto& bands : weights)
        for (Buffer<float>& numbers : bands) std::fill_n(numbers.data.get(), numbers.size, 0.0f);
    for_strips(in, scene, threads, [&](int v, int band, int column) {
        View& view = scene.views[v];
        weigh_strip(in, view, view.bands[band], column, band, weights[v][band].data.get());
    });
    parallel_for((in.count + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk) {
        for (int64_t i = chunk * CHUNK; i < std::min(in.count, (chunk + 1) * CHUNK); ++i)
            for (int v = 0; v < in.views; ++v) {
                const View& view = scene.views[v];
                for (int band = view.reaches[i].first; band <= view.reaches[i].last; ++band) {
                    const Buffer<int32_t>& numbers = view.bands[band].first_number;
                    for (int32_t n = numbers[i]; n < numbers[i + 1]; ++n) out[i] += weights[v][band][n];
                }
            }
    });
}

void differentiate(const Inputs& in, const Scene& scene, const float* colors, const float* alphas,
                   const float* g_colors, const float* g_alphas, const Gradients& out, int threads) {
    auto sums = pair_buffers(scene, SUMS);
    const int64_t strips = int64_t(scene.bands) * scene.columns;
    Buffer<float> background(3 * strips * in.views);
    for_strips(in, scene, threads, [&](int v, int band, int column) {
        const View& view = scene.views[v];
        const int64_t first = int64_t(v) * in.height * in.width;
        differentiate_strip(in, view, view.bands[band], column, band, colors + 3 * first, alphas + first,
                            g_colors + 3 * first, g_alphas == nullptr ? nullptr : g_alphas + first,
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
            const int64_t first = int64_t(v) * height * width;
            draw_strip(in, view, view.bands[band], column, band, colors + 3 * first, alphas + first);
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
