// Projection of LANES splats at a time into one camera, and the way back for gradients.
//
// Derivatives follow gsplat's mathematical supplement (Ye and Kanazawa 2023), with the covariance kept as its square
// root M = U N (U = Jacobian * world-to-camera rotation, N = splat rotation * scales).
#pragma once

#include "blend.h"
#include "simd.h"
#include "splats.h"

namespace gsmae {

struct Vec3 {
    vfloat x, y, z;
};

inline Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec3 operator*(vfloat s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
inline vfloat dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec3 cross(Vec3 a, Vec3 b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
inline Vec3 constant(const float* v) { return {broadcast(v[0]), broadcast(v[1]), broadcast(v[2])}; }
inline Vec3 keep(vint mask, Vec3 a) { return {keep(mask, a.x), keep(mask, a.y), keep(mask, a.z)}; }

constexpr int MAX_SH = 16;

// What does not depend on the view.
struct Block {
    int lanes;  // how many of LANES are real splats; the others repeat the last one
    Vec3 mean, scale;
    vfloat opacity;
    vfloat length2;       // of the quaternion
    vfloat w, x, y, z;    // unit quaternion
    Vec3 turn[3];         // rows of its rotation matrix
    Vec3 sh[MAX_SH];
};

struct Projection {
    vint drawn;
    Vec3 p;                  // mean in the camera
    vfloat inverse_z, tx, ty;  // tx, ty: x/z and y/z clamped to the widened frustum
    vint free_x, free_y;     // where they are not clamped
    Vec3 u[2], n[3], m[2];   // rows of U, N, M
    vfloat cov_xx, cov_xy, cov_yy, det;
    vfloat centre_x, centre_y;
    Vec3 direction;          // from camera to mean, unit
    vfloat distance;
    Vec3 color;              // before the clamp at 0
};

inline Block load_block(const Inputs& in, int64_t first) {
    Block b;
    b.lanes = int(in.count - first < LANES ? in.count - first : LANES);
    float sh[MAX_SH * 3][LANES];
    const int width = in.sh_count * 3;
    for (int l = 0; l < LANES; ++l) {
        const int64_t i = first + (l < b.lanes ? l : b.lanes - 1);
        const float *mean = in.means + 3 * i, *quat = in.quats + 4 * i, *scale = in.scales + 3 * i;
        b.mean.x[l] = mean[0], b.mean.y[l] = mean[1], b.mean.z[l] = mean[2];
        b.w[l] = quat[0], b.x[l] = quat[1], b.y[l] = quat[2], b.z[l] = quat[3];
        b.scale.x[l] = scale[0], b.scale.y[l] = scale[1], b.scale.z[l] = scale[2];
        b.opacity[l] = in.opacities[i];
        for (int k = 0; k < width; ++k) sh[k][l] = in.sh[width * i + k];
    }
    for (int k = 0; k < in.sh_count; ++k) b.sh[k] = {load(sh[3 * k]), load(sh[3 * k + 1]), load(sh[3 * k + 2])};

    b.length2 = b.w * b.w + b.x * b.x + b.y * b.y + b.z * b.z;
    const vint usable = ~(b.length2 <= QUAT_MIN);  // true for NaN, which then spoils the splat as it should
    const vfloat inverse = 1.0f / vsqrt(select(usable, b.length2, broadcast(1.0f)));
    const vfloat w = select(usable, b.w * inverse, broadcast(1.0f));
    const vfloat x = keep(usable, b.x * inverse), y = keep(usable, b.y * inverse), z = keep(usable, b.z * inverse);
    b.turn[0] = {1.0f - 2.0f * (y * y + z * z), 2.0f * (x * y - w * z), 2.0f * (x * z + w * y)};
    b.turn[1] = {2.0f * (x * y + w * z), 1.0f - 2.0f * (x * x + z * z), 2.0f * (y * z - w * x)};
    b.turn[2] = {2.0f * (x * z - w * y), 2.0f * (y * z + w * x), 1.0f - 2.0f * (x * x + y * y)};
    b.w = w, b.x = x, b.y = y, b.z = z;
    return b;
}

// Values of the spherical harmonics, in the order and signs of 3DGS.
inline void sh_basis(Vec3 d, int count, vfloat* basis) {
    basis[0] = broadcast(0.28209479177387814f);
    if (count < 4) return;
    const vfloat x = d.x, y = d.y, z = d.z;
    basis[1] = -0.4886025119029199f * y;
    basis[2] = 0.4886025119029199f * z;
    basis[3] = -0.4886025119029199f * x;
    if (count < 9) return;
    const vfloat xx = x * x, yy = y * y, zz = z * z;
    basis[4] = 1.0925484305920792f * x * y;
    basis[5] = -1.0925484305920792f * y * z;
    basis[6] = 0.31539156525252005f * (2.0f * zz - xx - yy);
    basis[7] = -1.0925484305920792f * x * z;
    basis[8] = 0.5462742152960396f * (xx - yy);
    if (count < 16) return;
    basis[9] = -0.5900435899266435f * y * (3.0f * xx - yy);
    basis[10] = 2.890611442640554f * x * y * z;
    basis[11] = -0.4570457994644658f * y * (4.0f * zz - xx - yy);
    basis[12] = 0.3731763325901154f * z * (2.0f * zz - 3.0f * xx - 3.0f * yy);
    basis[13] = -0.4570457994644658f * x * (4.0f * zz - xx - yy);
    basis[14] = 1.445305721320277f * z * (xx - yy);
    basis[15] = -0.5900435899266435f * x * (xx - 3.0f * yy);
}

// Gradient of sum_k weight[k] * basis[k] by the direction's components, taken as independent.
inline Vec3 sh_basis_gradient(Vec3 d, int count, const vfloat* weight) {
    Vec3 g = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
    if (count < 4) return g;
    const vfloat x = d.x, y = d.y, z = d.z;
    g.y += -0.4886025119029199f * weight[1];
    g.z += 0.4886025119029199f * weight[2];
    g.x += -0.4886025119029199f * weight[3];
    if (count < 9) return g;
    const vfloat w4 = 1.0925484305920792f * weight[4], w5 = -1.0925484305920792f * weight[5];
    const vfloat w6 = 0.31539156525252005f * weight[6], w7 = -1.0925484305920792f * weight[7];
    const vfloat w8 = 0.5462742152960396f * weight[8];
    g.x += w4 * y - 2.0f * w6 * x + w7 * z + 2.0f * w8 * x;
    g.y += w4 * x + w5 * z - 2.0f * w6 * y - 2.0f * w8 * y;
    g.z += w5 * y + 4.0f * w6 * z + w7 * x;
    if (count < 16) return g;
    const vfloat xx = x * x, yy = y * y, zz = z * z;
    const vfloat w9 = -0.5900435899266435f * weight[9], w10 = 2.890611442640554f * weight[10];
    const vfloat w11 = -0.4570457994644658f * weight[11], w12 = 0.3731763325901154f * weight[12];
    const vfloat w13 = -0.4570457994644658f * weight[13], w14 = 1.445305721320277f * weight[14];
    const vfloat w15 = -0.5900435899266435f * weight[15];
    g.x += 6.0f * w9 * x * y + w10 * y * z - 2.0f * w11 * x * y - 6.0f * w12 * x * z +
           w13 * (4.0f * zz - 3.0f * xx - yy) + 2.0f * w14 * x * z + 3.0f * w15 * (xx - yy);
    g.y += 3.0f * w9 * (xx - yy) + w10 * x * z + w11 * (4.0f * zz - xx - 3.0f * yy) - 6.0f * w12 * y * z -
           2.0f * w13 * x * y - 2.0f * w14 * y * z - 6.0f * w15 * x * y;
    g.z += w10 * x * y + 8.0f * w11 * y * z + w12 * (6.0f * zz - 3.0f * xx - 3.0f * yy) + 8.0f * w13 * x * z +
           w14 * (xx - yy);
    return g;
}

inline vint finite(vfloat a) { return (a - a) == 0.0f; }

inline Projection project(const Block& b, const Camera& camera, int sh_count, const float* offsets, int64_t first) {
    Projection r;
    const Vec3 w0 = constant(camera.rotation[0]), w1 = constant(camera.rotation[1]), w2 = constant(camera.rotation[2]);
    r.p = Vec3{dot(w0, b.mean), dot(w1, b.mean), dot(w2, b.mean)} + constant(camera.translation);
    r.drawn = (r.p.z > NEAR_PLANE) & (b.opacity >= ALPHA_MIN);
    r.inverse_z = 1.0f / r.p.z;
    const vfloat x = r.p.x * r.inverse_z, y = r.p.y * r.inverse_z;
    r.centre_x = camera.fx * x + camera.cx;
    r.centre_y = camera.fy * y + camera.cy;
    if (offsets != nullptr)
        for (int l = 0; l < b.lanes; ++l) {
            r.centre_x[l] += offsets[2 * (first + l)];
            r.centre_y[l] += offsets[2 * (first + l) + 1];
        }

    r.tx = vmin(vmax(x, broadcast(camera.low_x)), broadcast(camera.high_x));
    r.ty = vmin(vmax(y, broadcast(camera.low_y)), broadcast(camera.high_y));
    r.free_x = r.tx == x;
    r.free_y = r.ty == y;
    r.u[0] = (camera.fx * r.inverse_z) * (w0 - r.tx * w2);
    r.u[1] = (camera.fy * r.inverse_z) * (w1 - r.ty * w2);
    for (int i = 0; i < 3; ++i)
        r.n[i] = {b.turn[i].x * b.scale.x, b.turn[i].y * b.scale.y, b.turn[i].z * b.scale.z};
    for (int i = 0; i < 2; ++i) r.m[i] = r.u[i].x * r.n[0] + r.u[i].y * r.n[1] + r.u[i].z * r.n[2];
    r.cov_xx = dot(r.m[0], r.m[0]);
    r.cov_xy = dot(r.m[0], r.m[1]);
    r.cov_yy = dot(r.m[1], r.m[1]);
    // Cauchy-Binet for the determinant before the blur: no cancellation in needles.
    const Vec3 normal = cross(r.m[0], r.m[1]);
    r.det = dot(normal, normal) + BLUR * (r.cov_xx + r.cov_yy) + BLUR * BLUR;
    r.cov_xx += BLUR;
    r.cov_yy += BLUR;

    const Vec3 towards = b.mean - constant(camera.centre);
    r.distance = vsqrt(dot(towards, towards));
    r.direction = (1.0f / r.distance) * towards;
    vfloat basis[MAX_SH];
    sh_basis(r.direction, sh_count, basis);
    r.color = {broadcast(0.5f), broadcast(0.5f), broadcast(0.5f)};
    for (int k = 0; k < sh_count; ++k) r.color = r.color + basis[k] * b.sh[k];

    r.drawn &= finite(r.centre_x) & finite(r.centre_y) & finite(r.cov_xx + r.cov_yy) & finite(r.cov_xy);
    r.drawn &= finite(r.det) & finite(b.opacity) & finite(r.color.x) & finite(r.color.y) & finite(r.color.z);
    return r;
}

// Gradients of a block, summed over views.
struct BlockGradients {
    Vec3 mean = {}, scale = {};
    vfloat opacity = {}, w = {}, x = {}, y = {}, z = {};
    Vec3 sh[MAX_SH] = {};
    vfloat offset_x, offset_y;  // of the last view added
};

inline void add_gradients(BlockGradients& out, const Block& b, const Camera& camera, const Projection& r,
                          const vfloat* s, int sh_count) {
    // From the two squares to centre and covariance. With a = 1 / (2 xx), k = det / xx and c = 1 / (2 k):
    // log(alpha) = log(opacity) - a dx^2 - c u^2, u = dy - slope dx, slope = xy / xx.
    const vfloat a = 0.5f / r.cov_xx, c = 0.5f * r.cov_xx / r.det, slope = r.cov_xy / r.cov_xx;
    const vfloat g_slope = 2.0f * c * s[UDX], g_k = 2.0f * c * c * s[U2];
    const vfloat g_x = 2.0f * a * s[DX] - 2.0f * c * slope * s[U], g_y = 2.0f * c * s[U];
    const vfloat g_xx = 2.0f * a * a * s[DX2] - 2.0f * a * slope * g_slope + slope * slope * g_k;
    const vfloat g_xy = 2.0f * a * g_slope - 2.0f * slope * g_k, g_yy = g_k;
    out.offset_x = keep(r.drawn, g_x);
    out.offset_y = keep(r.drawn, g_y);
    out.opacity += keep(r.drawn, s[ONE] / b.opacity);

    // To M, then to U and N.
    const Vec3 g_m[2] = {2.0f * g_xx * r.m[0] + g_xy * r.m[1], 2.0f * g_yy * r.m[1] + g_xy * r.m[0]};
    const Vec3 g_u[2] = {{dot(g_m[0], r.n[0]), dot(g_m[0], r.n[1]), dot(g_m[0], r.n[2])},
                         {dot(g_m[1], r.n[0]), dot(g_m[1], r.n[1]), dot(g_m[1], r.n[2])}};
    const Vec3 g_n[3] = {r.u[0].x * g_m[0] + r.u[1].x * g_m[1], r.u[0].y * g_m[0] + r.u[1].y * g_m[1],
                         r.u[0].z * g_m[0] + r.u[1].z * g_m[1]};

    // N = turn * scale; the quaternion's gradient is made tangential to the unit sphere.
    const Vec3* t = b.turn;
    const Vec3 g_scale = {g_n[0].x * t[0].x + g_n[1].x * t[1].x + g_n[2].x * t[2].x,
                          g_n[0].y * t[0].y + g_n[1].y * t[1].y + g_n[2].y * t[2].y,
                          g_n[0].z * t[0].z + g_n[1].z * t[1].z + g_n[2].z * t[2].z};
    out.scale = out.scale + keep(r.drawn, g_scale);
    Vec3 g[3];
    for (int i = 0; i < 3; ++i) g[i] = {g_n[i].x * b.scale.x, g_n[i].y * b.scale.y, g_n[i].z * b.scale.z};
    const vfloat w = b.w, x = b.x, y = b.y, z = b.z;
    const vfloat g_qw = 2.0f * (x * (g[2].y - g[1].z) + y * (g[0].z - g[2].x) + z * (g[1].x - g[0].y));
    const vfloat g_qx = 2.0f * (w * (g[2].y - g[1].z) + y * (g[0].y + g[1].x) + z * (g[0].z + g[2].x) -
                                2.0f * x * (g[1].y + g[2].z));
    const vfloat g_qy = 2.0f * (w * (g[0].z - g[2].x) + x * (g[0].y + g[1].x) + z * (g[1].z + g[2].y) -
                                2.0f * y * (g[0].x + g[2].z));
    const vfloat g_qz = 2.0f * (w * (g[1].x - g[0].y) + x * (g[0].z + g[2].x) + y * (g[1].z + g[2].y) -
                                2.0f * z * (g[0].x + g[1].y));
    const vint turned = r.drawn & (b.length2 > QUAT_MIN);
    const vfloat inverse = 1.0f / vsqrt(b.length2), along = w * g_qw + x * g_qx + y * g_qy + z * g_qz;
    out.w += keep(turned, (g_qw - along * w) * inverse);
    out.x += keep(turned, (g_qx - along * x) * inverse);
    out.y += keep(turned, (g_qy - along * y) * inverse);
    out.z += keep(turned, (g_qz - along * z) * inverse);

    // U = (f / z) (row of the camera - t * its third row), t = clamped x / z or y / z.
    const Vec3 w0 = constant(camera.rotation[0]), w1 = constant(camera.rotation[1]), w2 = constant(camera.rotation[2]);
    const vfloat fx_z = camera.fx * r.inverse_z, fy_z = camera.fy * r.inverse_z;
    const vfloat g_tx = keep(r.free_x, -fx_z * dot(g_u[0], w2)), g_ty = keep(r.free_y, -fy_z * dot(g_u[1], w2));
    const vfloat g_sx = g_tx + camera.fx * g_x, g_sy = g_ty + camera.fy * g_y;  // by x/z and y/z
    const Vec3 g_p = {g_sx * r.inverse_z, g_sy * r.inverse_z,
                      -r.inverse_z * (dot(g_u[0], r.u[0]) + dot(g_u[1], r.u[1]) +
                                      (g_sx * r.p.x + g_sy * r.p.y) * r.inverse_z)};
    Vec3 g_mean = {g_p.x * w0.x + g_p.y * w1.x + g_p.z * w2.x, g_p.x * w0.y + g_p.y * w1.y + g_p.z * w2.y,
                   g_p.x * w0.z + g_p.y * w1.z + g_p.z * w2.z};

    // Colour: coefficients, and the direction when there are more than the constant ones.
    const Vec3 g_color = keep(r.drawn, Vec3{keep(r.color.x >= 0.0f, s[RED]), keep(r.color.y >= 0.0f, s[GREEN]),
                                            keep(r.color.z >= 0.0f, s[BLUE])});
    vfloat basis[MAX_SH], weight[MAX_SH];
    sh_basis(r.direction, sh_count, basis);
    for (int k = 0; k < sh_count; ++k) {
        out.sh[k] = out.sh[k] + keep(r.drawn, basis[k] * g_color);
        weight[k] = dot(b.sh[k], g_color);
    }
    if (sh_count > 1) {
        const Vec3 g_direction = sh_basis_gradient(r.direction, sh_count, weight);
        g_mean = g_mean + (1.0f / r.distance) * (g_direction - dot(g_direction, r.direction) * r.direction);
    }
    out.mean = out.mean + keep(r.drawn, g_mean);
}

}  // namespace gsmae
