// What the parts of the splat rasteriser share: constants, cameras, the projected splat, and the scene of a call.
//
// The model and its constants are defined by gsmae/ops/reference/splats.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "simd.h"

namespace gsmae {

constexpr float NEAR_PLANE = 0.01f;
constexpr float BLUR = 0.3f;
constexpr float ALPHA_MIN = 1.0f / 255.0f;
constexpr float ALPHA_MAX = 0.999f;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr float FRUSTUM_MARGIN = 0.3f;
constexpr float QUAT_MIN = 1e-24f;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOG2_ALPHA_MIN = -7.994353436858858f;

// A strip is the unit of work of the rasteriser: PIXELS (simd.h) columns and STRIP rows. It is tall and narrow because
// a projected splat covers one run of rows in every such column, so the inner loop is a plain counted loop over vectors
// of pixels, and needs no test for pixels beyond the ellipse but the one in its lanes.
constexpr int STRIP = 64;

// Arrays without the zero fill of std::vector.
template <class T>
struct Buffer {
    std::unique_ptr<T[]> data;
    int64_t size = 0;

    Buffer() = default;
    explicit Buffer(int64_t count) : data(new T[count > 0 ? count : 1]), size(count) {}
    T& operator[](int64_t i) { return data[i]; }
    const T& operator[](int64_t i) const { return data[i]; }

    void grow(int64_t count, int64_t used) {
        Buffer larger(count);
        std::copy_n(data.get(), used, larger.data.get());
        *this = std::move(larger);
    }
};

struct Inputs {
    int64_t count;       // splats
    int32_t sh_count;    // coefficients for each channel
    const float *means, *quats, *scales, *opacities, *sh;
    int32_t views;
    const float *viewmats, *Ks, *offsets;  // offsets may be null
    int32_t width, height;
    const float* background;
};

struct Gradients {  // any may be null; offsets are [V, N, 2]
    float *means, *quats, *scales, *opacities, *sh, *offsets, *background;
};

struct Camera {
    float rotation[3][3], translation[3], centre[3];
    float fx, fy, cx, cy, low_x, high_x, low_y, high_y;  // the last four bound x/z and y/z in the Jacobian

    Camera(const float* viewmat, const float* K, int width, int height) {
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) rotation[i][j] = viewmat[4 * i + j];
            translation[i] = viewmat[4 * i + 3];
        }
        for (int j = 0; j < 3; ++j)
            centre[j] = -(rotation[0][j] * translation[0] + rotation[1][j] * translation[1] +
                          rotation[2][j] * translation[2]);
        fx = K[0], fy = K[4], cx = K[2], cy = K[5];
        const float margin_x = FRUSTUM_MARGIN * 0.5f * width / fx, margin_y = FRUSTUM_MARGIN * 0.5f * height / fy;
        low_x = -(cx / fx + margin_x), high_x = (width - cx) / fx + margin_x;
        low_y = -(cy / fy + margin_y), high_y = (height - cy) / fy + margin_y;
    }
};

struct Reach {  // bands that a splat may touch, first to last; none where first > last
    int16_t first, last;
};

// A splat in one view. With dx, dy from its centre, u = dy - slope * dx:
//     log2(alpha) = peak - across * dx^2 - along * u^2
// which is the usual quadratic form written as two squares (x, then y given x), so that nothing cancels in needles.
struct alignas(64) Splat {
    float x, y, slope, across, along, peak;
    float color[3];
    float half_width, half_height;  // of the box around the ellipse log2(alpha) >= log2(1/255)
    float depth;
    Reach bands;                         // touched by that box
    int16_t first_column, last_column;  // of strips touched by it
    int32_t index;                      // into the inputs
};

// One splat in one strip. Within a band pairs are numbered by the index of the splat, then by column, so that its
// gradients lie together and are summed in a fixed order whichever thread wrote them.
struct Pair {
    int32_t splat;  // rank by depth in the view
    int32_t number;
    uint8_t first_row, end_row;  // narrowed where pixels were finished before it
    uint8_t drawn;               // whether it changed a pixel, be it only to finish it
};

struct Band {                      // the strips of one row of strips
    Buffer<int32_t> first_number;  // [count + 1] by index
    Buffer<int32_t> first_pair;    // [columns + 1] into pairs
    Buffer<Pair> pairs;            // sorted by column, then depth
};

struct View {
    Buffer<Splat> splats;   // nearest first
    Buffer<Reach> reaches;  // by index
    std::vector<Band> bands;
};

struct Scene {
    int32_t columns = 0, bands = 0;  // strips across and down a picture
    std::vector<Camera> cameras;
    std::vector<View> views;
};

}  // namespace gsmae
