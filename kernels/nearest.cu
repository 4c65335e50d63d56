// Nearest centroid by dot product, exact.
//
//   index[i]  = argmax_j  points[i] . centroids[j]        (ties: the smallest j)
//   score[i]  = that largest product
//   second[i] = the largest product over all other j       (INT_MIN when k = 1)
//
// points     n x d, i16, row-major      index   n, u32
// centroids  k x d, i16, row-major      score   n, i32
//                                       second  n, i32
//
// Norms are below 2^12 on both sides (the caller checks), so every product and every partial sum is below 2^24 in
// magnitude: i32 sums are exact in any order, and the result equals the CPU twin bit for bit.
//
// Launch: 16 x 16 threads, one block per 64 points. A block walks over tiles of 64 centroids; each thread holds a 4 x 4
// corner of the 64 x 64 products. Arithmetic: 2 n k d operations on n d + k d values; for k >= 64 it is bound by
// integer multiply-adds, not by memory.

#include <climits>

constexpr int TILE = 64;   // points and centroids per tile
constexpr int DEPTH = 32;  // coordinates per step
constexpr int SIDE = 16;   // threads per side; each handles TILE / SIDE rows and columns
constexpr int EACH = TILE / SIDE;

struct Best {
  int score;
  unsigned index;
  int second;
};

// The better of two candidates, and the best score among the rest.
__device__ inline Best merge(Best a, Best b) {
  const bool b_wins = b.score > a.score || (b.score == a.score && b.index < a.index);
  const Best winner = b_wins ? b : a;
  const Best loser = b_wins ? a : b;
  return {winner.score, winner.index, max(max(a.second, b.second), loser.score)};
}

__device__ inline void load_tile(short tile[TILE][DEPTH + 2], const short *rows, int first, int count, int from, int d) {
  const int thread = threadIdx.y * SIDE + threadIdx.x;
  for (int at = thread; at < TILE * DEPTH; at += SIDE * SIDE) {
    const int row = first + at / DEPTH, column = from + at % DEPTH;
    const bool inside = row < count && column < d;
    tile[at / DEPTH][at % DEPTH] = inside ? rows[(size_t)row * d + column] : (short)0;
  }
}

extern "C" __global__ void nearest_i16(const short *points, const short *centroids, unsigned *index, int *score,
                                       int *second, int n, int k, int d) {
  // Two more columns than needed put the rows of a tile into different banks.
  __shared__ short p[TILE][DEPTH + 2], c[TILE][DEPTH + 2];
  const int first_point = blockIdx.x * TILE;
  Best best[EACH];
  for (int r = 0; r < EACH; r++) best[r] = {INT_MIN, UINT_MAX, INT_MIN};

  for (int first = 0; first < k; first += TILE) {
    int sum[EACH][EACH] = {};
    for (int from = 0; from < d; from += DEPTH) {
      load_tile(p, points, first_point, n, from, d);
      load_tile(c, centroids, first, k, from, d);
      __syncthreads();
      for (int x = 0; x < DEPTH; x++)
        for (int r = 0; r < EACH; r++)
          for (int s = 0; s < EACH; s++)
            sum[r][s] += (int)p[threadIdx.y + r * SIDE][x] * (int)c[threadIdx.x + s * SIDE][x];
      __syncthreads();
    }
    for (int r = 0; r < EACH; r++)
      for (int s = 0; s < EACH; s++) {
        const int j = first + threadIdx.x + s * SIDE;
        if (j < k) best[r] = merge(best[r], {sum[r][s], (unsigned)j, INT_MIN});
      }
  }

  // The 16 threads with one threadIdx.y share their points and half a warp.
  for (int r = 0; r < EACH; r++) {
    for (int step = SIDE / 2; step > 0; step /= 2) {
      Best other;
      other.score = __shfl_down_sync(0xffffffffu, best[r].score, step, SIDE);
      other.index = __shfl_down_sync(0xffffffffu, best[r].index, step, SIDE);
      other.second = __shfl_down_sync(0xffffffffu, best[r].second, step, SIDE);
      best[r] = merge(best[r], other);
    }
    const int i = first_point + threadIdx.y + r * SIDE;
    if (threadIdx.x == 0 && i < n) {
      index[i] = best[r].index;
      score[i] = best[r].score;
      second[i] = best[r].second;
    }
  }
}
