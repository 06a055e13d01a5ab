// Kernels of edge's GPU preprocessing; what they compute is in preprocess_pixel.h.
//
// Grid: x and y are the tiles of the output, z is the frame. Threads per block: EDGE_THREADS.
// Dynamic shared memory: 8 bytes for every row of a tile, 4 for every reduced pixel of the largest window.

#include "preprocess_pixel.h"

namespace edge {

template <int BOX, bool CUBIC, typename T>
__device__ __forceinline__ void resized(const Job& job) {
  extern __shared__ u32 shared[];
  const int y = blockIdx.y * EDGE_TILE_HEIGHT, x = blockIdx.x * EDGE_TILE_WIDTH, frame = blockIdx.z;
  const Window window = window_of(job, y, x, CUBIC ? 1 : 0);
  load_tile<BOX>(job, frame, window, shared, y, threadIdx.x);
  __syncthreads();
  write_tile<CUBIC, T>(job, frame, window, shared, y, x, threadIdx.x);
}

template <typename T>
__device__ __forceinline__ void nearest(const Job& job) {
  write_nearest<T>(job, blockIdx.z, blockIdx.y * EDGE_TILE_HEIGHT, blockIdx.x * EDGE_TILE_WIDTH, threadIdx.x);
}

}  // namespace edge

#define EDGE_KERNELS(TYPE, SUFFIX)                                                                              \
  extern "C" __global__ void edge_bilinear_1_##SUFFIX(const edge::Job job) { edge::resized<1, false, TYPE>(job); } \
  extern "C" __global__ void edge_bilinear_2_##SUFFIX(const edge::Job job) { edge::resized<2, false, TYPE>(job); } \
  extern "C" __global__ void edge_bilinear_n_##SUFFIX(const edge::Job job) { edge::resized<0, false, TYPE>(job); } \
  extern "C" __global__ void edge_bicubic_n_##SUFFIX(const edge::Job job) { edge::resized<0, true, TYPE>(job); }   \
  extern "C" __global__ void edge_nearest_##SUFFIX(const edge::Job job) { edge::nearest<TYPE>(job); }

EDGE_KERNELS(float, f32)
EDGE_KERNELS(edge::u16, f16)
