// Pictures of a textured triangle mesh: a visibility buffer per band of rows, then each sample is shaded once.
// The definition, in numpy, is preprocessing/render_reference.py; the light is in preprocessing/render.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "common.h"
#include "surface.h"

namespace {

using namespace gsmae::mesh;

constexpr double kNear = 0.01;          // distance of the near plane
constexpr double kCoplanar = 1.00001;   // a later face must be nearer by this factor, so that doubled faces do not fight
constexpr float kFaint = 1.0f / 255.0f; // opacity that is not seen
constexpr double kSlack = 0.5 + 1e-4;   // of a face's bounding box, in samples
constexpr int kBlock = 4;               // samples of a row that are tested together

typedef double Doubles __attribute__((vector_size(8 * kBlock)));
typedef int64_t Mask __attribute__((vector_size(8 * kBlock)));
typedef float Floats __attribute__((vector_size(4 * kBlock)));

inline bool any(const Mask& m) {
    int64_t all = 0;
    for (int j = 0; j < kBlock; ++j) all |= m[j];
    return all != 0;
}

struct Fragment {
    float inverse_depth;
    int32_t face;
    int32_t next;
};

// Scratch of one thread.
struct Buffers {
    std::vector<Vec3> points;       // [V] in homogeneous sample coordinates
    std::vector<double> flat;       // [V, 2] in samples; of no meaning before the near plane
    std::vector<float> depth;       // [rows, width] 1 / depth of the nearest opaque face, 0 = none
    std::vector<int32_t> face;      // [rows, width] that face, -1 = none
    std::vector<int32_t> first;     // [rows, width] last translucent fragment, -1 = none
    std::vector<Fragment> fragments;
    std::vector<Fragment> sorted;
};

// One camera and one band of rows [first, last) of its picture.
class Band {
public:
    Band(const Scene& scene, const float* view, const float* k, int32_t first, int32_t last, Buffers& buffers)
        : s(scene), b(buffers), columns(scene.width * scene.supersample),
          stride((columns + kBlock - 1) / kBlock * kBlock), row0(first * scene.supersample),
          row1(last * scene.supersample), rows(first), rows_end(last) {
        const size_t cells = size_t(row1 - row0) * size_t(stride);
        b.depth.assign(cells, 0.0f);
        b.face.assign(cells, -1);
        b.first.clear();
        b.fragments.clear();
        b.points.resize(size_t(s.vertex_count));
        b.flat.resize(2 * size_t(s.vertex_count));
        const double n = s.supersample;
        for (int64_t i = 0; i < s.vertex_count; ++i) {
            const float* p = s.vertices + 3 * i;
            double c[3];
            for (int r = 0; r < 3; ++r)
                c[r] = double(view[4 * r]) * p[0] + double(view[4 * r + 1]) * p[1] + double(view[4 * r + 2]) * p[2] +
                       double(view[4 * r + 3]);
            const Vec3 q{n * (k[0] * c[0] + k[1] * c[1] + k[2] * c[2]), n * (k[4] * c[1] + k[5] * c[2]), c[2]};
            b.points[size_t(i)] = q;
            b.flat[size_t(2 * i)] = q.x / q.z;
            b.flat[size_t(2 * i + 1)] = q.y / q.z;
        }
    }

    void draw(uint8_t* image, uint8_t* alpha) {
        bool blended = false;
        for (int64_t f = 0; f < s.face_count; ++f) {
            if (s.modes[f] == kBlended)
                blended = true;
            else if (s.modes[f] == kCutout)
                rasterise<kCutout>(f);
            else
                rasterise<kOpaque>(f);
        }
        if (blended) {
            b.first.assign(b.face.size(), -1);
            for (int64_t f = 0; f < s.face_count; ++f)
                if (s.modes[f] == kBlended) rasterise<kBlended>(f);
        }
        resolve(image, alpha);
    }

private:
    const Scene& s;
    Buffers& b;
    const int32_t columns, stride, row0, row1, rows, rows_end;

    bool setup(int64_t f, Setup& out) const {
        const int32_t* v = s.faces + 3 * f;
        return out.from(b.points[size_t(v[0])], b.points[size_t(v[1])], b.points[size_t(v[2])]);
    }

    // Samples that the face may cover: [x0, x1) x [y0, y1). False when there are none.
    bool bounds(int64_t f, int32_t& x0, int32_t& x1, int32_t& y0, int32_t& y1) const {
        const int32_t* v = s.faces + 3 * f;
        double lx = std::numeric_limits<double>::infinity(), ly = lx, hx = -lx, hy = -lx;
        int behind = 0;
        for (int i = 0; i < 3; ++i) {
            if (b.points[size_t(v[i])].z < kNear) ++behind;
            const double* p = b.flat.data() + 2 * size_t(v[i]);
            lx = std::min(lx, p[0]);
            hx = std::max(hx, p[0]);
            ly = std::min(ly, p[1]);
            hy = std::max(hy, p[1]);
        }
        if (behind == 3) return false;
        if (behind > 0) {  // crosses the near plane: could reach any border
            lx = ly = -1e9;
            hx = hy = 1e9;
        }
        // sample centres lie at one half; a little wider than it is, for the rounding of the divisions
        x0 = int32_t(std::ceil(std::max(lx - kSlack, 0.0)));
        x1 = int32_t(std::floor(std::min(hx + kSlack, double(columns))));
        y0 = int32_t(std::ceil(std::max(ly - kSlack, double(row0))));
        y1 = int32_t(std::floor(std::min(hy + kSlack, double(row1))));
        return x0 < x1 && y0 < y1;
    }

    // Narrows [begin, end) to where a row crosses the face, and never past a sample that could lie inside: long thin
    // faces fill little of their box. `at` holds the edges' values at x = 0.
    static void span(const Setup& t, const double at[3], int32_t& begin, int32_t& end) {
        double low = begin, high = end;
        for (int i = 0; i < 3; ++i) {
            const Vec3& e = t.edge[i];
            const double slack = 1e-10 * (std::fabs(at[i]) + std::fabs(e.z));  // far above the rounding of at
            if (e.x > 0)
                low = std::max(low, (-at[i] - slack) / e.x - 1.5);
            else if (e.x < 0)
                high = std::min(high, (-at[i] - slack) / e.x + 0.5);
            else if (at[i] < 0)
                high = low;
        }
        begin = int32_t(std::min(low, double(end)));
        end = int32_t(std::ceil(std::max(high, double(begin))));
    }

    template <Mode mode>
    void rasterise(int64_t f) {
        int32_t x0, x1, y0, y1;
        Setup t;
        if (!bounds(f, x0, x1, y0, y1) || !setup(f, t)) return;
        // an edge through a sample's centre: the sample belongs to the face whose edge points right, or down
        double least[3];
        for (int i = 0; i < 3; ++i) {
            const Vec3& e = t.edge[i];
            const bool mine = e.x > 0 || (e.x == 0 && e.y > 0);
            least[i] = mine ? 0.0 : std::numeric_limits<double>::denorm_min();
        }
        Doubles ex[3];
        for (int i = 0; i < 3; ++i) ex[i] = t.edge[i].x - Doubles{};
        for (int32_t y = y0; y < y1; ++y) {
            const double py = y + 0.5;
            double at[3];
            for (int i = 0; i < 3; ++i) at[i] = t.edge[i].y * py + t.edge[i].z;
            const size_t line_start = size_t(y - row0) * size_t(stride);
            int32_t begin = x0, end = x1;
            if (x1 - x0 > 2 * kBlock) span(t, at, begin, end);
            for (int32_t x = begin / kBlock * kBlock; x < end; x += kBlock) {
                Doubles px;
                for (int j = 0; j < kBlock; ++j) px[j] = double(x + j) + 0.5;
                const Doubles e0 = ex[0] * px + at[0], e1 = ex[1] * px + at[1], e2 = ex[2] * px + at[2];
                Mask inside = (e0 >= least[0]) & (e1 >= least[1]) & (e2 >= least[2]);
                if (!any(inside)) continue;
                const Doubles inverse = (e0 + e1 + e2) * t.scale;
                Floats before;
                std::memcpy(&before, b.depth.data() + line_start + size_t(x), sizeof before);
                const Doubles bar = __builtin_convertvector(before, Doubles) * (mode == kBlended ? 1.0 : kCoplanar);
                inside &= (inverse < 1 / kNear) & (inverse > bar);
                if (!any(inside)) continue;
                for (int j = 0; j < kBlock; ++j) {
                    if (!inside[j] || x + j >= columns) continue;
                    const size_t cell = line_start + size_t(x + j);
                    if (mode == kCutout) {
                        if (Surface(s, t, f).opacity(x + j + 0.5, py) < 0.5f) continue;
                    }
                    if (mode == kBlended) {
                        b.fragments.push_back({float(inverse[j]), int32_t(f), b.first[cell]});
                        b.first[cell] = int32_t(b.fragments.size()) - 1;
                    } else {
                        b.depth[cell] = float(inverse[j]);
                        b.face[cell] = int32_t(f);
                    }
                }
            }
        }
    }

    void resolve(uint8_t* image, uint8_t* alpha) {
        const int32_t n = s.supersample;
        const float share = 1.0f / float(n * n);
        const Color background = {s.background[0], s.background[1], s.background[2], 0};
        Setup t;
        std::optional<Surface> surface;
        int64_t known = -1;
        for (int32_t row = rows; row < rows_end; ++row) {
            for (int32_t column = 0; column < s.width; ++column) {
                Color sum = {0, 0, 0, 0};
                for (int32_t y = row * n; y < (row + 1) * n; ++y) {
                    for (int32_t x = column * n; x < (column + 1) * n; ++x) {
                        const size_t cell = size_t(y - row0) * size_t(stride) + size_t(x);
                        const int64_t f = b.face[cell];
                        Color color = background;  // with the covered share in place of alpha
                        if (f >= 0) {
                            if (f != known) {
                                setup(f, t);
                                surface.emplace(s, t, f);
                                known = f;
                            }
                            color = surface->shade(x + 0.5, y + 0.5);
                            color[3] = 1;
                        }
                        if (!b.first.empty() && b.first[cell] >= 0) color = over(b.first[cell], x, y, color);
                        sum += color;
                    }
                }
                const int64_t pixel = int64_t(row) * s.width + column;
                sum = sum * (255 * share) + 0.5f;
                for (int c = 0; c < 3; ++c) image[3 * pixel + c] = uint8_t(sum[c]);
                alpha[pixel] = uint8_t(sum[3]);
            }
        }
    }

    // Translucent fragments over a colour, the farthest first.
    Color over(int32_t first, int32_t x, int32_t y, Color color) {
        b.sorted.clear();
        for (int32_t i = first; i >= 0; i = b.fragments[size_t(i)].next) b.sorted.push_back(b.fragments[size_t(i)]);
        if (b.sorted.size() > 1)
            std::sort(b.sorted.begin(), b.sorted.end(), [](const Fragment& p, const Fragment& q) {
                return p.inverse_depth != q.inverse_depth ? p.inverse_depth < q.inverse_depth : p.face < q.face;
            });
        for (const Fragment& fragment : b.sorted) {
            Setup t;
            if (!setup(fragment.face, t)) continue;
            Color front = Surface(s, t, fragment.face).shade(x + 0.5, y + 0.5);
            const float alpha = front[3];
            if (alpha < kFaint) continue;
            front[3] = 1;
            color += (front - color) * alpha;
        }
        return color;
    }
};

}  // namespace

// Pictures of C cameras: images [C, height, width, 3] and alphas [C, height, width], every byte of both is written.
// Arrays as in Scene; viewmats [C, 4, 4] world to camera, intrinsics [C, 3, 3].
GSMAE_API void gsmae_mesh_render(const float* vertices, int64_t vertex_count, const int32_t* faces, int64_t face_count,
                                 const float* normals, const float* uvs, const float* colors, const int32_t* texture,
                                 const uint8_t* modes, const uint8_t* texels, const int64_t* levels,
                                 const int32_t* chains, const float* light, const float* background,
                                 const float* viewmats, const float* intrinsics, int32_t cameras, int32_t width,
                                 int32_t height, int32_t supersample, uint8_t* images, uint8_t* alphas,
                                 int32_t threads) {
    const Scene scene{vertices, faces,  normals, uvs,        colors,       texture,    modes, texels, levels,
                      chains,   light,  background, vertex_count, face_count, width, height, supersample};
    // whole pictures when there are enough of them, else bands of rows
    const int32_t bands = cameras >= 2 * threads ? 1 : std::min(height, 4 * threads);
    std::vector<Buffers> buffers(size_t(std::max(threads, 1)));
    gsmae::parallel_for(int64_t(cameras) * bands, threads, [&](int64_t task) {
        const int64_t camera = task / bands, band = task % bands;
        const auto first = int32_t(height * band / bands), last = int32_t(height * (band + 1) / bands);
        if (first == last) return;
        Band work(scene, viewmats + 16 * camera, intrinsics + 9 * camera, first, last,
                  buffers[size_t(gsmae::thread_index())]);
        work.draw(images + 3 * camera * int64_t(width) * height, alphas + camera * int64_t(width) * height);
    });
}
