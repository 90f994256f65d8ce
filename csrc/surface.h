// A face as one camera sees it, and the colour of its points: texture, opacity and light.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace gsmae::mesh {

typedef float Color __attribute__((vector_size(16)));
typedef uint8_t Texel __attribute__((vector_size(4)));

enum Mode : uint8_t { kOpaque = 0, kCutout = 1, kBlended = 2 };

struct Scene {
    const float* vertices;    // [V, 3]
    const int32_t* faces;     // [F, 3]
    const float* normals;     // [F, 3, 3]
    const float* uvs;         // [F, 3, 2]
    const float* colors;      // [F, 3, 4]
    const int32_t* texture;   // [F]
    const uint8_t* modes;     // [F]
    const uint8_t* texels;    // all levels of all textures, RGBA multiplied by alpha
    const int64_t* levels;    // [L, 3]: offset in texels, width, height
    const int32_t* chains;    // [T, 3]: first level, number of levels, whether alpha is cut at one half
    const float* light;       // ambient, then (x, y, z, strength) of two directional lights
    const float* background;  // [3]
    int64_t vertex_count, face_count;
    int32_t width, height, supersample;
};

struct Vec3 {
    double x, y, z;
};

inline Vec3 cross(const Vec3& a, const Vec3& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

inline double dot(const Vec3& a, const Vec3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

// The line through two homogeneous points; line(a, b) is exactly -line(b, a).
inline Vec3 line(const Vec3& a, const Vec3& b) {
    const bool ordered = a.x != b.x ? a.x < b.x : a.y != b.y ? a.y < b.y : a.z <= b.z;
    if (ordered) return cross(a, b);
    const Vec3 l = cross(b, a);
    return {-l.x, -l.y, -l.z};
}

// A face as one camera sees it: barycentric weight i is edge[i](x, y) / (edge[0] + edge[1] + edge[2])(x, y), and
// 1 / depth is that sum times `scale`. `back` tells that the camera sees the side the normals do not point to.
struct Setup {
    Vec3 edge[3];
    double scale = 0;
    bool back = false;

    bool from(const Vec3& a, const Vec3& b, const Vec3& c) {
        edge[0] = line(b, c);
        edge[1] = line(c, a);
        edge[2] = line(a, b);
        const double volume = dot(edge[0], a);
        if (!(std::fabs(volume) > 0) || !std::isfinite(volume)) return false;
        back = volume > 0;
        if (volume < 0)
            for (Vec3& e : edge) e = {-e.x, -e.y, -e.z};
        scale = 1 / std::fabs(volume);
        return std::isfinite(scale);
    }
};

inline Color texel(const Scene& s, const int64_t* level, int64_t x, int64_t y) {
    Texel value;
    std::memcpy(&value, s.texels + 4 * (level[0] + y * level[1] + x), sizeof value);
    return __builtin_convertvector(value, Color);
}

// Bilinear and repeating, RGBA 0..255 multiplied by alpha; u and v in [0, 1), v pointing down.
inline Color bilinear(const Scene& s, const int64_t* level, float u, float v) {
    const int64_t w = level[1], h = level[2];
    const float x = u * float(w) + 0.5f, y = v * float(h) + 0.5f;  // one texel to the right, so that neither is negative
    int64_t x1 = int64_t(x), y1 = int64_t(y), x0 = x1 - 1, y0 = y1 - 1;
    const float right = x - float(x1), down = y - float(y1);
    if (x0 < 0) x0 += w;
    if (x1 >= w) x1 -= w;
    if (y0 < 0) y0 += h;
    if (y1 >= h) y1 -= h;
    const Color above = texel(s, level, x0, y0) * (1 - right) + texel(s, level, x1, y0) * right;
    const Color below = texel(s, level, x0, y1) * (1 - right) + texel(s, level, x1, y1) * right;
    return above * (1 - down) + below * down;
}

// A texture between the two levels whose texels fit a sample that covers (du[0], dv[0]) and (du[1], dv[1]).
// RGBA 0..1, plain alpha; cut-out textures have alpha 0 or 1.
inline Color look_up(const Scene& s, int32_t chain, double u, double v, const double du[2], const double dv[2]) {
    const int32_t* c = s.chains + 3 * chain;
    const int64_t* levels = s.levels + 3 * int64_t(c[0]);
    const double w = double(levels[1]), h = double(levels[2]);
    double area = 0;
    for (int d = 0; d < 2; ++d) area = std::max(area, du[d] * du[d] * w * w + dv[d] * dv[d] * h * h);
    float lod = area > 1 ? 0.5f * std::log2(float(area)) : 0.0f;
    const int32_t top = c[1] - 1;
    if (!(lod < float(top))) lod = float(top);
    const int32_t lower = int32_t(lod);
    const float share = lod - float(lower);
    // the fraction of v is taken before it is turned downwards, and may become 1 in float: the texel wraps
    const float right = std::min(float(u - std::floor(u)), 0.99999994f), down = 1 - float(v - std::floor(v));
    Color sum = bilinear(s, levels + 3 * lower, right, down);
    if (share > 0) sum = sum * (1 - share) + bilinear(s, levels + 3 * (lower + 1), right, down) * share;
    const float alpha = sum[3] * (1 / 255.0f), scale = 1 / (255 * std::max(alpha, 1e-6f));
    Color out = sum * scale;
    out = out < 1.0f ? out : Color{1, 1, 1, 1};
    out[3] = c[2] ? (alpha >= 0.5f ? 1.0f : 0.0f) : alpha;
    return out;
}

// What can be said about a whole face before its samples are shaded.
class Surface {
public:
    Surface(const Scene& scene, const Setup& setup_, int64_t face_) : s(scene), setup(setup_), face(face_) {
        for (const Vec3& e : setup.edge) total = {total.x + e.x, total.y + e.y, total.z + e.z};
        for (int i = 0; i < 3; ++i) std::memcpy(&color[i], s.colors + 12 * face + 4 * i, sizeof color[i]);
        const float* n = s.normals + 9 * face;
        plain = std::memcmp(&color[0], &color[1], 16) == 0 && std::memcmp(&color[0], &color[2], 16) == 0;
        flat = std::memcmp(n, n + 3, 12) == 0 && std::memcmp(n, n + 6, 12) == 0;
        if (flat) even = light(n[0], n[1], n[2]);
        texture = s.texture[face];
        if (texture < 0) return;
        const float* t = s.uvs + 6 * face;
        for (int i = 0; i < 3; ++i) {
            const Vec3& e = setup.edge[i];
            const double a = t[2 * i], b = t[2 * i + 1];
            across = {across.x + a * e.x, across.y + a * e.y, across.z + a * e.z};
            upward = {upward.x + b * e.x, upward.y + b * e.y, upward.z + b * e.z};
        }
    }

    // Colour under the light and opacity at sample centre (x, y).
    Color shade(double x, double y) const {
        double weight[3];
        const double inverse = 1 / weights(x, y, weight);
        Color out = albedo(x, y, weight, inverse);
        float strength = even;
        if (!flat) {
            const float* n = s.normals + 9 * face;
            float v[3];
            for (int c = 0; c < 3; ++c)
                v[c] = float((weight[0] * n[c] + weight[1] * n[c + 3] + weight[2] * n[c + 6]) * inverse);
            strength = light(v[0], v[1], v[2]);
        }
        const float alpha = out[3];
        out = out * strength;
        out = out < 1.0f ? out : Color{1, 1, 1, 1};
        out[3] = alpha;
        return out;
    }

    float opacity(double x, double y) const {
        double weight[3];
        const double inverse = 1 / weights(x, y, weight);
        return albedo(x, y, weight, inverse)[3];
    }

private:
    const Scene& s;
    const Setup& setup;
    const int64_t face;
    Vec3 total{0, 0, 0}, across{0, 0, 0}, upward{0, 0, 0};  // sums of the edges; times u; times v
    Color color[3];
    float even = 0;
    int32_t texture;
    bool plain, flat;

    // The weights of the corners, not yet divided by their sum, which is returned.
    double weights(double x, double y, double weight[3]) const {
        for (int i = 0; i < 3; ++i) weight[i] = setup.edge[i].x * x + setup.edge[i].y * y + setup.edge[i].z;
        return total.x * x + total.y * y + total.z;
    }

    Color albedo(double x, double y, const double weight[3], double inverse) const {
        Color out = color[0];
        if (!plain)
            out = color[0] * float(weight[0] * inverse) + color[1] * float(weight[1] * inverse) +
                  color[2] * float(weight[2] * inverse);
        if (texture < 0) return out;
        const double u = (across.x * x + across.y * y + across.z) * inverse;
        const double v = (upward.x * x + upward.y * y + upward.z) * inverse;
        const double du[2] = {(across.x - u * total.x) * inverse, (across.y - u * total.y) * inverse};
        const double dv[2] = {(upward.x - v * total.x) * inverse, (upward.y - v * total.y) * inverse};
        return out * look_up(s, texture, u, v, du, dv);
    }

    // The light on a normal of any length, turned to the side that is seen.
    float light(float x, float y, float z) const {
        const float scale = (setup.back ? -1.0f : 1.0f) / std::sqrt(std::max(x * x + y * y + z * z, 1e-20f));
        float out = s.light[0];
        for (const float* l = s.light + 1; l < s.light + 9; l += 4)
            out += l[3] * std::max(0.0f, (x * l[0] + y * l[1] + z * l[2]) * scale);
        return out;
    }
};

}  // namespace gsmae::mesh
