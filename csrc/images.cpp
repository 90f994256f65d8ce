// L1 + SSIM loss of pictures with its gradient, and SSIM alone.
//
// gsmae/ops/reference/images.py defines the result. A row of a picture is taken as 3 * width floats: neighbours in x
// are three floats apart, so the three channels need no separating. Every row of the result is a task of its own:
// eleven rows are filtered vertically into row buffers, those horizontally.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "common.h"
#include "simd.h"

namespace gsmae {
namespace {

constexpr int RADIUS = 5, CHANNELS = 3;
constexpr float C1 = 0.01f * 0.01f, C2 = 0.03f * 0.03f;
// exp(-k^2 / (2 * 1.5^2)), k = 0..5, divided by the sum over k = -5..5
constexpr float WINDOW[RADIUS + 1] = {0.2660117249f,  0.2130055377f,   0.1093606895f,
                                      0.03600077213f, 0.007598758135f, 0.001028380084f};

// A row with zeros on both sides, so that neighbours can be read beyond its ends.
constexpr int PAD = 16;
static_assert(PAD >= RADIUS * CHANNELS, "a window must fit the padding");

inline int64_t padded(int64_t length) { return length + 2 * PAD + LANES; }

// The first n floats of a vector; PART says that n may be less than all.
template <bool PART>
inline vfloat take(const float* p, int64_t n) {
    if (!PART) return load(p);
    vfloat v = {};
    std::memcpy(&v, p, sizeof(float) * n);
    return v;
}

// Calls body(i, n, part) for groups of LANES floats of a row; only the last group may be partial.
template <class Body>
inline void for_groups(int64_t length, const Body& body) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) body(i, int64_t(LANES), std::false_type());
    if (i < length) body(i, length - i, std::true_type());
}

inline vfloat filter(const float* row) {
    vfloat total = WINDOW[0] * load(row);
    for (int k = 1; k <= RADIUS; ++k) total += WINDOW[k] * (load(row - CHANNELS * k) + load(row + CHANNELS * k));
    return total;
}

// The eleven rows around `row` of a picture; rows beyond its edge are zeros.
struct Neighbours {
    const float* row[2 * RADIUS + 1];
    Neighbours(const float* picture, int64_t height, int64_t length, int64_t y, const float* zeros) {
        for (int k = -RADIUS; k <= RADIUS; ++k)
            row[k + RADIUS] = y + k >= 0 && y + k < height ? picture + (y + k) * length : zeros;
    }
    const float* operator[](int k) const { return row[k + RADIUS]; }
};

// Scratch of a thread: padded row buffers.
struct Buffers {
    std::vector<float> memory;
    int64_t stride;
    Buffers(int64_t length, int count) : memory(padded(length) * count, 0.0f), stride(padded(length)) {}
    float* operator[](int i) { return memory.data() + i * stride + PAD; }
};

// Gradients of the summed SSIM by the window's mean of x, of x^2 + y^2, and of x y, each [H, 3 W]; may be null.
struct Slopes {
    float *mean, *square, *product;
};

struct RowSums {
    double ssim, l1;
};

// SSIM of one row. Only the sum of the two variances is needed, so four means make all of it.
double ssim_row(const float* image, const float* target, int64_t height, int64_t length, int64_t y,
                const float* zeros, Buffers& buffers, const Slopes* slopes) {
    const Neighbours xs(image, height, length, y, zeros), ys(target, height, length, y, zeros);
    float *mean_x = buffers[0], *mean_y = buffers[1], *square = buffers[2], *product = buffers[3];
    for_groups(length, [&](int64_t i, int64_t n, auto part) {
        constexpr bool PART = decltype(part)::value;
        const vfloat x = take<PART>(xs[0] + i, n), y0 = take<PART>(ys[0] + i, n);
        vfloat mx = WINDOW[0] * x, my = WINDOW[0] * y0, xx = WINDOW[0] * (x * x + y0 * y0), xy = WINDOW[0] * (x * y0);
        for (int k = 1; k <= RADIUS; ++k) {
            const vfloat x1 = take<PART>(xs[-k] + i, n), x2 = take<PART>(xs[k] + i, n);
            const vfloat y1 = take<PART>(ys[-k] + i, n), y2 = take<PART>(ys[k] + i, n);
            mx += WINDOW[k] * (x1 + x2);
            my += WINDOW[k] * (y1 + y2);
            xx += WINDOW[k] * (x1 * x1 + x2 * x2 + y1 * y1 + y2 * y2);
            xy += WINDOW[k] * (x1 * y1 + x2 * y2);
        }
        store(mean_x + i, mx), store(mean_y + i, my), store(square + i, xx), store(product + i, xy);
    });

    double total = 0.0;
    for_groups(length, [&](int64_t i, int64_t n, auto) {
        const vfloat mx = filter(mean_x + i), my = filter(mean_y + i);
        const vfloat mxy = mx * my, mm = mx * mx + my * my;
        const vfloat a1 = 2.0f * mxy + C1, a2 = 2.0f * (filter(product + i) - mxy) + C2;
        const vfloat b1 = mm + C1, b2 = filter(square + i) - mm + C2;
        const vfloat inverse = 1.0f / (b1 * b2);
        vfloat value = a1 * a2 * inverse;
        if (slopes != nullptr) {
            const vfloat by_mean = 2.0f * inverse * (my * (a2 - a1) + mx * value * (b1 - b2));
            const vfloat by_square = -value * b1 * inverse, by_product = 2.0f * a1 * inverse;
            std::memcpy(slopes->mean + y * length + i, &by_mean, sizeof(float) * n);
            std::memcpy(slopes->square + y * length + i, &by_square, sizeof(float) * n);
            std::memcpy(slopes->product + y * length + i, &by_product, sizeof(float) * n);
        }
        for (int64_t l = n; l < LANES; ++l) value[l] = 0.0f;
        total += sum(value);
    });
    return total;
}

// One row of the gradient of l1_scale * sum |x - y| + ssim_scale * sum SSIM; returns sum |x - y|.
double gradient_row(const float* image, const float* target, int64_t height, int64_t length, int64_t y,
                    const float* zeros, Buffers& buffers, const Slopes& slopes, float l1_scale, float ssim_scale,
                    float* gradient) {
    const float* maps[3] = {slopes.mean, slopes.square, slopes.product};
    for (int m = 0; m < 3; ++m) {
        const Neighbours rows(maps[m], height, length, y, zeros);
        float* out = buffers[m];
        for_groups(length, [&](int64_t i, int64_t n, auto part) {
            constexpr bool PART = decltype(part)::value;
            vfloat v = WINDOW[0] * take<PART>(rows[0] + i, n);
            for (int k = 1; k <= RADIUS; ++k)
                v += WINDOW[k] * (take<PART>(rows[-k] + i, n) + take<PART>(rows[k] + i, n));
            store(out + i, v);
        });
    }
    double total = 0.0;
    for_groups(length, [&](int64_t i, int64_t n, auto part) {
        constexpr bool PART = decltype(part)::value;
        const vfloat x = take<PART>(image + y * length + i, n), t = take<PART>(target + y * length + i, n);
        const vfloat difference = x - t;
        const vfloat one = broadcast(1.0f), zero = {};
        const vfloat sign = select(difference > 0.0f, one, select(difference < 0.0f, -one, zero));
        const vfloat g = filter(buffers[0] + i) + 2.0f * x * filter(buffers[1] + i) + t * filter(buffers[2] + i);
        const vfloat all = l1_scale * sign + ssim_scale * g;
        std::memcpy(gradient + y * length + i, &all, sizeof(float) * n);
        total += sum(difference * sign);
    });
    return total;
}

double l1_row(const float* image, const float* target, int64_t length) {
    double total = 0.0;
    for_groups(length, [&](int64_t i, int64_t n, auto part) {
        constexpr bool PART = decltype(part)::value;
        const vfloat d = take<PART>(image + i, n) - take<PART>(target + i, n);
        total += sum(vmax(d, -d));
    });
    return total;
}

constexpr int64_t ROWS_AT_ONCE = 8;

// Calls body(view, row, buffers) for every row; a task takes some consecutive rows of a view.
template <class Body>
void for_rows(int64_t views, int64_t height, int64_t length, int threads, const Body& body) {
    const int64_t tasks = (height + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    parallel_for(views * tasks, threads, [&](int64_t task) {
        Buffers buffers(length, 4);
        const int64_t first = task % tasks * ROWS_AT_ONCE;
        for (int64_t y = first; y < std::min(height, first + ROWS_AT_ONCE); ++y) body(task / tasks, y, buffers);
    });
}

}  // namespace
}  // namespace gsmae

using namespace gsmae;

// Of every view of image and target [V, H, W, 3]: ssim[v] = mean SSIM, l1[v] = mean |image - target|. Where `gradient`
// [V, H, W, 3] is not null it receives that of (1 - weight) * mean(l1) - weight * mean(ssim) by the image.
// Returns 0, or 1 when memory ran out.
GSMAE_API int32_t gsmae_images_l1_ssim(int32_t views, int32_t height, int32_t width, const float* image,
                                       const float* target, float weight, double* ssim, double* l1, float* gradient,
                                       int32_t threads) {
    try {
        const int64_t length = int64_t(width) * CHANNELS, size = height * length;
        const std::vector<float> zeros(length, 0.0f);
        std::vector<RowSums> rows(int64_t(views) * height);
        std::unique_ptr<float[]> maps(gradient == nullptr ? nullptr : new float[3 * views * size]);
        const auto slopes_of = [&](int64_t v) {
            float* first = maps.get() + 3 * v * size;
            return Slopes{first, first + size, first + 2 * size};
        };
        for_rows(views, height, length, threads, [&](int64_t v, int64_t y, Buffers& buffers) {
            const Slopes slopes = slopes_of(v);
            const float *x = image + v * size, *t = target + v * size;
            const Slopes* wanted = gradient == nullptr ? nullptr : &slopes;
            RowSums& sums = rows[v * height + y];
            sums.ssim = ssim_row(x, t, height, length, y, zeros.data(), buffers, wanted);
            if (gradient == nullptr) sums.l1 = l1_row(x + y * length, t + y * length, length);
        });
        if (gradient != nullptr) {
            const float count = float(views * size), l1_scale = (1.0f - weight) / count, ssim_scale = -weight / count;
            for_rows(views, height, length, threads, [&](int64_t v, int64_t y, Buffers& buffers) {
                rows[v * height + y].l1 =
                    gradient_row(image + v * size, target + v * size, height, length, y, zeros.data(), buffers,
                                 slopes_of(v), l1_scale, ssim_scale, gradient + v * size);
            });
        }
        for (int64_t v = 0; v < views; ++v) {
            ssim[v] = l1[v] = 0.0;
            for (int64_t y = 0; y < height; ++y) {
                ssim[v] += rows[v * height + y].ssim / double(size);
                l1[v] += rows[v * height + y].l1 / double(size);
            }
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
