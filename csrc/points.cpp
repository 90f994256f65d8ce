// Farthest points, nearest neighbours, and both at once.
//
// gsmae/ops/reference/points.py defines the result, index for index: a squared distance is the sum of the squared
// differences in the order of the columns, every operation rounded. A fused multiply-add would round once less and
// break ties that are ties, so this file must not contract.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common.h"
#include "simd.h"

namespace gsmae {
namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();

// Points are kept in tiles: the first column of TILE points, their second column, and so on. A pass over the points
// then reads memory in a row whatever the number of columns.
constexpr int TILE = 64;
constexpr int UNROLL = 4, BLOCK = UNROLL * LANES;  // of a tile, a block of points is taken together
static_assert(TILE % BLOCK == 0, "a tile is whole");

// A bit for each lane where a <= b.
inline uint32_t at_most(vfloat a, vfloat b) {
#if defined(__AVX512F__) && GSMAE_LANES == 16
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif defined(__AVX__) && GSMAE_LANES == 8
    return uint32_t(_mm256_movemask_ps((__m256)(a <= b)));
#elif defined(__SSE2__) && GSMAE_LANES == 4
    return uint32_t(_mm_movemask_ps((__m128)(a <= b)));
#else
    const vint mask = a <= b;
    uint32_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= uint32_t(mask[i] & 1) << i;
    return bits;
#endif
}

constexpr int LONGS = LANES / 2;
typedef int64_t vlong __attribute__((vector_size(8 * LONGS)));

inline int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The points of one sample; those beyond the last are NaN, which is nearer to nothing and farther from nothing.
class Tiles {
   public:
    Tiles(const float* points, int64_t count, int columns)
        : count(count),
          columns(columns),
          tiles((count + TILE - 1) / TILE),
          memory_(new float[size_t(tiles * TILE * columns)]) {
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t n = std::min<int64_t>(TILE, count - t * TILE);
            const float* from = points + t * TILE * columns;
            for (int c = 0; c < columns; ++c) {
                float* to = memory_.get() + (t * columns + c) * TILE;
                for (int64_t i = 0; i < n; ++i) to[i] = from[i * columns + c];
                std::fill(to + n, to + TILE, NAN);
            }
        }
    }

    int64_t padded() const { return tiles * TILE; }

    // Calls body(first point, squared distances of a block) for all blocks in order. COLUMNS is the number of
    // columns, or 0 where it is known only now.
    template <int COLUMNS, class Body>
    void for_distances(const float* center, const Body& body) const {
        const int number = COLUMNS ? COLUMNS : columns;
        const float* tile = memory_.get();
        for (int64_t first = 0; first < padded(); first += TILE, tile += int64_t(TILE) * number) {
            for (int part = 0; part < TILE; part += BLOCK) {
                vfloat distance[UNROLL] = {};
                for (int c = 0; c < number; ++c) {
                    for (int u = 0; u < UNROLL; ++u) {
                        const vfloat difference = load(tile + c * TILE + part + u * LANES) - center[c];
                        const vfloat square = difference * difference;
                        distance[u] = COLUMNS && c == 0 ? square : distance[u] + square;
                    }
                }
                body(first + part, distance);
            }
        }
    }

    const int64_t count;
    const int columns;
    const int64_t tiles;

   private:
    std::unique_ptr<float[]> memory_;
};

// Where the largest gap is: the first block that has the largest so far, lane by lane.
struct Farthest {
    vfloat gap = broadcast(-2.0f);  // below every other
    vint block = {};

    void meet(int64_t first, const vfloat* gaps) {
        const vfloat most = vmax(vmax(gaps[0], gaps[1]), vmax(gaps[2], gaps[3]));
        const vint better = most > gap;
        gap = better ? most : gap;
        block = better ? vint{} + int32_t(first) : block;
    }

    // The lowest index with the largest gap.
    int64_t index(const float* gaps) const {
        int best = 0;
        for (int i = 1; i < LANES; ++i)
            if (gap[i] > gap[best] || (gap[i] == gap[best] && block[i] < block[best])) best = i;
        const float* found = gaps + block[best];
        return std::find(found, found + BLOCK - 1, gap[best]) - gaps;
    }
};
static_assert(UNROLL == 4, "as Farthest has it");

// Distances of one centre, and their k smallest. The points are dealt into at least k hands; the k-th smallest of the
// hands' minima bounds the k-th smallest of all, and few distances pass that bound. Those are sorted.
class Selection {
   public:
    Selection(const Tiles& tiles, int k)
        : count_(tiles.count),
          k_(k),
          hands_(TILE * std::min<int64_t>(tiles.tiles, (int64_t(HANDS_PER_NEIGHBOUR) * k + TILE - 1) / TILE)),
          distance_(tiles.padded()),
          minima_(hands_),
          keys_(tiles.padded() + PADDING) {}

    // Takes the distances, vector by vector in the order of the points.
    class Dealer {
       public:
        explicit Dealer(Selection* to) {
            if (to == nullptr) return;
            distance_ = to->distance_.data(), minima_ = to->minima_.data(), hands_ = to->hands_;
            std::fill_n(minima_, hands_, INFINITE);
        }

        void deal(int64_t first, const vfloat* distance) {
            for (int u = 0; u < UNROLL; ++u) {
                store(distance_ + first + u * LANES, distance[u]);
                float* hand = minima_ + hand_ + u * LANES;
                store(hand, vmin(distance[u], load(hand)));
            }
            hand_ = hand_ + BLOCK == hands_ ? 0 : hand_ + BLOCK;
        }

       private:
        float *distance_ = nullptr, *minima_ = nullptr;
        int64_t hands_ = 0, hand_ = 0;
    };

    // Writes the indices of the k nearest, nearest first, ties to the lower index.
    void finish(int64_t* out) {
        int64_t found = collect(bound());
        if (found < k_) found = collect_all();  // some distances are not numbers; these are the farthest
        if (found <= FEW)
            rank(found, out);
        else
            sort(found, out);
    }

   private:
    static constexpr int HANDS_PER_NEIGHBOUR = 4, FEW = 160, PADDING = 16;

    int64_t minima_at_most(float bound) const {
        const vfloat bounds = broadcast(bound);
        int64_t number = 0;
        for (int64_t i = 0; i < hands_; i += LANES) number += __builtin_popcount(at_most(load(&minima_[i]), bounds));
        return number;
    }

    // A distance that at least k of the minima do not exceed, and hardly more. The bits of floats that are not
    // negative order as they do, so halving the interval of bits ends after at most 31 steps.
    float bound() const {
        vfloat least = load(&minima_[0]), most = least;
        for (int64_t i = LANES; i < hands_; i += LANES) {
            least = vmin(least, load(&minima_[i]));
            most = vmax(most, load(&minima_[i]));
        }
        float low_value = least[0], high_value = most[0];
        for (int i = 1; i < LANES; ++i)
            low_value = std::min(low_value, least[i]), high_value = std::max(high_value, most[i]);
        int32_t low = bits_of(low_value) - 1, high = bits_of(high_value);  // too few at low, enough at high
        const int64_t enough = k_ + k_ / 16 + 1;
        while (high - low > 1) {
            const int32_t middle = low + (high - low) / 2;
            const int64_t number = minima_at_most(float_of(middle));
            if (number < k_) {
                low = middle;
            } else {
                high = middle;
                if (number <= enough) break;
            }
        }
        return float_of(high);
    }

    // Keys without ties: the bits of the distance, then the index.
    int64_t collect(float bound) {
        constexpr int STEP = std::min(TILE, 32);
        const vfloat bounds = broadcast(bound);
        int64_t found = 0;
        for (int64_t first = 0; first < int64_t(distance_.size()); first += STEP) {
            uint32_t within = 0;
            for (int i = 0; i < STEP; i += LANES) within |= at_most(load(&distance_[first + i]), bounds) << i;
            for (; within != 0; within &= within - 1) keep_key(found++, first + __builtin_ctz(within));
        }
        return found;
    }

    int64_t collect_all() {
        for (int64_t i = 0; i < count_; ++i) {
            if (!(distance_[i] <= INFINITE)) distance_[i] = NAN;  // whichever NaN it was
            keep_key(i, i);
        }
        return count_;
    }

    void keep_key(int64_t slot, int64_t i) { keys_[slot] = (int64_t(bits_of(distance_[i])) << 32) | i; }

    // The place of a key is the number of smaller ones: quadratic, but without a branch to guess wrong.
    void rank(int64_t found, int64_t* out) {
        int64_t places[FEW + PADDING];
        for (int64_t first = 0; first < found; first += 2 * LONGS) {
            vlong low, high, low_place = {}, high_place = {};
            std::memcpy(&low, &keys_[first], sizeof low);
            std::memcpy(&high, &keys_[first + LONGS], sizeof high);
            for (int64_t j = 0; j < found; ++j) {
                const vlong key = vlong{} + keys_[j];
                low_place -= key < low;
                high_place -= key < high;
            }
            std::memcpy(places + first, &low_place, sizeof low_place);
            std::memcpy(places + first + LONGS, &high_place, sizeof high_place);
        }
        for (int64_t i = 0; i < found; ++i)
            if (places[i] < k_) out[places[i]] = keys_[i] & 0xFFFFFFFF;
    }

    void sort(int64_t found, int64_t* out) {
        if (found > k_) std::nth_element(keys_.begin(), keys_.begin() + k_ - 1, keys_.begin() + found);
        std::sort(keys_.begin(), keys_.begin() + k_);
        for (int64_t i = 0; i < k_; ++i) out[i] = keys_[i] & 0xFFFFFFFF;
    }

    const int64_t count_, k_, hands_;
    std::vector<float> distance_, minima_;
    std::vector<int64_t> keys_;
};

// The farthest points of one sample and, where wanted, the k nearest neighbours of each: the same distances serve both.
template <int COLUMNS, bool NEIGHBOURS>
void cover(const float* points, int64_t count, int columns, int64_t groups, int64_t start, int k, int64_t* centers,
           int64_t* neighbours) {
    const Tiles tiles(points, count, columns);
    std::unique_ptr<Selection> selection(NEIGHBOURS ? new Selection(tiles, k) : nullptr);
    std::vector<float> to_chosen(tiles.padded(), -1.0f);  // -1 is below every distance: never again
    float* gaps = to_chosen.data();
    std::fill_n(gaps, count, INFINITE);
    int64_t current = start;
    for (int64_t g = 0; g < groups; ++g) {
        centers[g] = current;
        if (!NEIGHBOURS && g + 1 == groups) break;
        gaps[current] = -1.0f;
        Farthest farthest;
        Selection::Dealer dealer(selection.get());
        tiles.for_distances<COLUMNS>(points + current * columns, [&](int64_t first, const vfloat* distance) {
            vfloat gap[UNROLL];
            for (int u = 0; u < UNROLL; ++u) {
                gap[u] = vmin(distance[u], load(gaps + first + u * LANES));  // NaN changes nothing
                store(gaps + first + u * LANES, gap[u]);
            }
            farthest.meet(first, gap);
            if (NEIGHBOURS) dealer.deal(first, distance);
        });
        if (NEIGHBOURS) selection->finish(neighbours + g * k);
        current = farthest.index(gaps);
    }
}

template <int COLUMNS>
void find_nearest(const Tiles& tiles, const float* query, int64_t queries, int k, int64_t* out) {
    Selection selection(tiles, k);
    for (int64_t q = 0; q < queries; ++q) {
        Selection::Dealer dealer(&selection);
        tiles.for_distances<COLUMNS>(query + q * tiles.columns,
                                     [&](int64_t first, const vfloat* distance) { dealer.deal(first, distance); });
        selection.finish(out + q * k);
    }
}

constexpr int64_t QUERIES_AT_ONCE = 64;

}  // namespace
}  // namespace gsmae

using namespace gsmae;

// Of every sample of points [batch, count, columns]: `groups` indices of farthest points, the first of them `start`,
// into centers [batch, groups], and where `neighbours` [batch, groups, k] is not null, the k points nearest to each.
// Returns 0, or 1 when memory ran out.
GSMAE_API int32_t gsmae_points_cover(int64_t batch, int64_t count, int32_t columns, const float* points,
                                     int64_t groups, int64_t start, int32_t k, int64_t* centers, int64_t* neighbours,
                                     int32_t threads) {
    try {
        const bool both = neighbours != nullptr;
        const auto run = columns == 3 ? (both ? cover<3, true> : cover<3, false>)
                                      : (both ? cover<0, true> : cover<0, false>);
        parallel_for(batch, threads, [&](int64_t b) {
            run(points + b * count * columns, count, columns, groups, start, both ? k : 1, centers + b * groups,
                both ? neighbours + b * groups * k : nullptr);
        });
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Of every query [batch, queries, columns]: the indices of the k nearest of the points [batch, count, columns] of its
// sample, into out [batch, queries, k]. Returns 0, or 1 when memory ran out.
GSMAE_API int32_t gsmae_points_nearest(int64_t batch, int64_t queries, int64_t count, int32_t columns,
                                       const float* query, const float* points, int32_t k, int64_t* out,
                                       int32_t threads) {
    try {
        const auto run = columns == 3 ? find_nearest<3> : find_nearest<0>;
        std::vector<std::unique_ptr<Tiles>> tiles(batch);
        parallel_for(batch, threads, [&](int64_t b) {
            tiles[b] = std::make_unique<Tiles>(points + b * count * columns, count, columns);
        });
        const int64_t tasks = (queries + QUERIES_AT_ONCE - 1) / QUERIES_AT_ONCE;
        parallel_for(batch * tasks, threads, [&](int64_t task) {
            const int64_t b = task / tasks, first = task % tasks * QUERIES_AT_ONCE, row = b * queries + first;
            run(*tiles[b], query + row * columns, std::min(QUERIES_AT_ONCE, queries - first), k, out + row * k);
        });
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
