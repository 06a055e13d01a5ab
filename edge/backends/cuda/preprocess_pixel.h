// The arithmetic of edge's GPU preprocessing, for one block of output pixels at a time.
//
// It computes what edge/preprocess.py defines (crop or letterbox or squash; means of whole boxes when shrinking by two
// or more; nearest, bilinear or bicubic with half-pixel centres; channel order; (x - mean) / std), straight from uint8
// BGR rows of any stride to normalized planes. The same text compiles as CUDA, where the threads of a block share
// the work, and as plain C++, where a loop plays the threads: so parity and bounds are checked without a GPU.
//
// A block goes through two phases with a barrier between them:
//   load_tile   reduces the source pixels that its output tile needs to box means, packed B | G<<8 | R<<16, in `shared`
//   write_tile  interpolates among those means, normalizes, and writes every pixel of the tile, letterbox margin included
//
// A plain C++ includer brings <math.h> and <string.h> first. The directive that would bring them here is left out on purpose: PyCUDA
// runs the compiler's preprocessor over any source that holds one before it even looks into its cache.

#ifndef EDGE_PREPROCESS_PIXEL_H
#define EDGE_PREPROCESS_PIXEL_H

#ifdef __CUDACC__
#define EDGE_FN static __device__ __forceinline__
#else
#define EDGE_FN static inline
#endif

// Called before every read of a frame in plain C++; a test defines it to check bounds to the byte.
#ifndef EDGE_READS
#define EDGE_READS(address, bytes) ((void)0)
#endif

// Output pixels of one block; the host side (kernels.py) passes what it launches with.
#ifndef EDGE_TILE_WIDTH
#define EDGE_TILE_WIDTH 32
#endif
#ifndef EDGE_TILE_HEIGHT
#define EDGE_TILE_HEIGHT 32
#endif

namespace edge {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

const int kWeightBits = 11;  // OpenCV's fixed point for uint8 (INTER_RESIZE_COEF_BITS)
const int kWeightOne = 1 << kWeightBits;

// One axis: `source` reduced pixels become `target` output pixels.
struct Axis {
  int source;
  int target;
  float inverse;  // 1 / (2 target)
};

// Everything about one launch; kernels.py packs the same layout. Distances are in bytes.
struct Job {
  u64 source;        // address of the first byte of the first box of frame 0
  u64 target;        // address of frame 0's output: 3 x height x width, float32 or float16, contiguous
  i64 frame_stride;  // from a frame to the next
  i64 row_stride;    // from a row to the next; negative when the rows run upwards
  i64 low;           // [source + low, source + high) is the memory that belongs to a frame
  i64 high;
  Axis x;
  Axis y;
  int right;  // box size: source pixels per reduced pixel along x
  int down;   // and along y
  int top;    // where the resized region lies in the output
  int left;
  int height;  // of the output
  int width;
  int reversed;  // 1: output channels are R, G, B; 0: B, G, R
  int pad;       // letterbox margin, 0 to 255
  float mean[3];  // in output order
  float inverse_std[3];
};

// The reduced pixels that one output tile reads.
struct Window {
  int row;
  int column;
  int rows;
  int columns;
};

// One output coordinate between two reduced pixels: `at`, the next, and the weight of the next in 1/2048.
struct Tap {
  int at;
  int weight;
};

// machine words

EDGE_FN u32 word_at(const u8* address) {
#ifdef __CUDACC__
  return __ldg(reinterpret_cast<const u32*>(address));
#else
  EDGE_READS(address, 4);
  u32 word;
  memcpy(&word, address, 4);
  return word;
#endif
}

EDGE_FN u32 byte_at(const u8* address) {
#ifdef __CUDACC__
  return __ldg(address);
#else
  EDGE_READS(address, 1);
  return *address;
#endif
}

// The 4 bytes that start `bits` / 8 bytes into the pair low, high.
EDGE_FN u32 shifted(u32 low, u32 high, u32 bits) {
#ifdef __CUDACC__
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<u32>(((static_cast<u64>(high) << 32) | low) >> bits);
#endif
}

// total + the sum of the bytes of `word` where `mask` holds 1.
EDGE_FN u32 add_bytes(u32 word, u32 mask, u32 total) {
#ifdef __CUDACC__
  return __dp4a(word, mask, total);
#else
  for (int i = 0; i < 32; i += 8) total += ((word >> i) & 255u) * ((mask >> i) & 255u);
  return total;
#endif
}

// a's low half times byte 0 of b plus a's high half times byte 1; `high` takes bytes 2 and 3.
EDGE_FN u32 weighted_low(u32 a, u32 b) {
#ifdef __CUDACC__
  return __dp2a_lo(a, b, 0u);
#else
  return (a & 0xffffu) * (b & 255u) + (a >> 16) * ((b >> 8) & 255u);
#endif
}

EDGE_FN u32 weighted_high(u32 a, u32 b) {
#ifdef __CUDACC__
  return __dp2a_hi(a, b, 0u);
#else
  return (a & 0xffffu) * ((b >> 16) & 255u) + (a >> 16) * (b >> 24);
#endif
}

// Blue and green of two packed pixels side by side: B a, B b, G a, G b; and red likewise.
EDGE_FN u32 blue_green(u32 a, u32 b) {
#ifdef __CUDACC__
  return __byte_perm(a, b, 0x5140);
#else
  return (a & 255u) | ((b & 255u) << 8) | ((a & 0xff00u) << 8) | ((b & 0xff00u) << 16);
#endif
}

EDGE_FN u32 red(u32 a, u32 b) {
#ifdef __CUDACC__
  return __byte_perm(a, b, 0x3362);
#else
  return ((a >> 16) & 255u) | (((b >> 16) & 255u) << 8);
#endif
}

// To the nearest integer, halves to even, for 0 <= value < 2^22: the sum leaves no bits for a fraction.
EDGE_FN float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

EDGE_FN int clamped(int value, int low, int high) { return value < low ? low : (value > high ? high : value); }

// Rounded to float16 bits, halves to even; what is too large becomes infinity.
EDGE_FN u16 half_bits(float value) {
#ifdef __CUDACC__
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  u32 bits;
  memcpy(&bits, &value, 4);
  const u32 sign = (bits >> 16) & 0x8000u;
  const u32 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<u16>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);  // 65520 and up
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal steps of 2^-24
    float absolute;
    memcpy(&absolute, &magnitude, 4);
    return static_cast<u16>(sign | static_cast<u32>(nearbyintf(absolute * 16777216.0f)));
  }
  const u32 odd = (magnitude >> 13) & 1u;
  return static_cast<u16>(sign | ((magnitude + 0xfffu + odd - 0x38000000u) >> 13));
#endif
}

EDGE_FN void store(float* target, float value) { *target = value; }
EDGE_FN void store(u16* target, float value) { *target = half_bits(value); }

// where an output pixel reads

// Floor of numerator / (2 target), for -2 target <= numerator < 2^31 - 2 target; the remainder comes back too.
EDGE_FN int divided(int numerator, const Axis& axis, int* remainder) {
  const int whole = 2 * axis.target;
  int quotient = static_cast<int>(static_cast<float>(numerator) * axis.inverse);
  int rest = numerator - quotient * whole;
  // The float quotient is at most one off either way: sizes end at 32767 (kernels.MAX_SIDE).
  if (rest < 0) {
    quotient -= 1;
    rest += whole;
  } else if (rest >= whole) {
    quotient += 1;
    rest -= whole;
  }
  *remainder = rest;
  return quotient;
}

// Half-pixel centres: output pixel i lies at (i + 0.5) source / target - 0.5.
EDGE_FN int centre(int index, const Axis& axis, int* remainder) {
  return divided((2 * index + 1) * axis.source - axis.target, axis, remainder);
}

EDGE_FN Tap linear_tap(int index, const Axis& axis) {
  Tap tap;
  int rest;
  tap.at = centre(index, axis, &rest);
  tap.weight = static_cast<int>(static_cast<float>(rest) * axis.inverse * kWeightOne + 0.5f);
  if (tap.at < 0 || tap.at >= axis.source - 1) {
    tap.at = clamped(tap.at, 0, axis.source - 1);
    tap.weight = 0;
  }
  return tap;
}

// OpenCV's cubic kernel, a = -0.75, for a fraction between the second and the third of four pixels.
EDGE_FN void cubic_weights(float fraction, float weights[4]) {
  const float a = -0.75f, before = fraction + 1.0f, after = 1.0f - fraction;
  weights[0] = ((a * before - 5.0f * a) * before + 8.0f * a) * before - 4.0f * a;
  weights[1] = ((a + 2.0f) * fraction - (a + 3.0f)) * fraction * fraction + 1.0f;
  weights[2] = ((a + 2.0f) * after - (a + 3.0f)) * after * after + 1.0f;
  weights[3] = 1.0f - weights[0] - weights[1] - weights[2];
}

// First reduced pixel and number of them that output pixels first..last read; `reach` is 0 for linear, 1 for cubic.
EDGE_FN void span(int first, int last, const Axis& axis, int reach, int* start, int* count) {
  int rest;
  const int low = clamped(centre(first, axis, &rest) - reach, 0, axis.source - 1);
  const int high = clamped(centre(last, axis, &rest) + 1 + reach, 0, axis.source - 1);
  *start = low;
  *count = high - low + 1;
}

// What the tile whose first output pixel is (y, x) reads; no rows where it lies in the letterbox margin.
EDGE_FN Window window_of(const Job& job, int y, int x, int reach) {
  Window window = {0, 0, 0, 0};
  const int top = y > job.top ? y - job.top : 0;
  const int left = x > job.left ? x - job.left : 0;
  const int bottom = clamped(y + EDGE_TILE_HEIGHT - job.top, 0, job.y.target);
  const int right = clamped(x + EDGE_TILE_WIDTH - job.left, 0, job.x.target);
  if (top < bottom && left < right) {
    span(top, bottom - 1, job.y, reach, &window.row, &window.rows);
    span(left, right - 1, job.x, reach, &window.column, &window.columns);
  }
  return window;
}

// phase 1: source pixels to box means

// The bytes of N pixels from any address, as 32-bit words. INSIDE reads whole aligned words, up to 3 bytes before the
// first byte and 6 after the last; otherwise bytes.
template <int N, bool INSIDE>
EDGE_FN void gather(const u8* address, u32 data[3]) {
  const int used = (3 * N + 3) / 4;  // words of data
  if (INSIDE) {
    const u32 offset = static_cast<u32>(reinterpret_cast<u64>(address)) & 3u;
    const u8* base = address - offset;
    const int loaded = (3 * N + 6) / 4;  // aligned words that hold them, whatever the offset
    u32 words[4];
#pragma unroll
    for (int i = 0; i < loaded; ++i) words[i] = word_at(base + 4 * i);
#pragma unroll
    for (int i = 0; i < used; ++i) data[i] = shifted(words[i], i + 1 < loaded ? words[i + 1] : 0u, 8u * offset);
  } else {
#pragma unroll
    for (int i = 0; i < used; ++i) data[i] = 0;
#pragma unroll
    for (int i = 0; i < 3 * N; ++i) data[i / 4] |= byte_at(address + i) << (8 * (i % 4));
  }
}

// Add the N pixels in `data` to the sums of blue, green and red.
template <int N>
EDGE_FN void accumulate(const u32 data[3], u32 sums[3]) {
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) {
#pragma unroll
    for (int word = 0; word < (3 * N + 3) / 4; ++word) {
      u32 mask = 0;
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        const int position = 4 * word + byte;
        if (position < 3 * N && position % 3 == channel) mask |= 1u << (8 * byte);
      }
      if (mask != 0) sums[channel] = add_bytes(data[word], mask, sums[channel]);
    }
  }
}

template <bool INSIDE>
EDGE_FN void add_row(const u8* address, int pixels, u32 sums[3]) {
  u32 data[3];
  for (; pixels >= 4; pixels -= 4, address += 12) {
    gather<4, INSIDE>(address, data);
    accumulate<4>(data, sums);
  }
  if (pixels == 3) {
    gather<3, INSIDE>(address, data);
    accumulate<3>(data, sums);
  } else if (pixels == 2) {
    gather<2, INSIDE>(address, data);
    accumulate<2>(data, sums);
  } else if (pixels == 1) {
    gather<1, INSIDE>(address, data);
    accumulate<1>(data, sums);
  }
}

EDGE_FN u32 packed(u32 blue, u32 green, u32 red) { return blue | (green << 8) | (red << 16); }

// Means of boxes that start at `address`. BOX 1: the pixel itself; 2: of 2 x 2; 0: of job.down x job.right.
template <int BOX, bool INSIDE>
struct Boxes {
  EDGE_FN u32 mean(const Job& job, const u8* address) {
    u32 sums[3] = {0, 0, 0};
    for (int row = 0; row < job.down; ++row) add_row<INSIDE>(address + row * job.row_stride, job.right, sums);
    // OpenCV rounds a mean of 2 x 2 with (sum + 2) >> 2, and all others to the nearest, halves to even.
    if (job.down == 2 && job.right == 2) return packed((sums[0] + 2) >> 2, (sums[1] + 2) >> 2, (sums[2] + 2) >> 2);
    const float scale = 1.0f / static_cast<float>(job.down * job.right);
    u32 means[3];
    for (int i = 0; i < 3; ++i) means[i] = static_cast<u32>(rounded(static_cast<float>(sums[i]) * scale));
    return packed(means[0], means[1], means[2]);
  }
};

template <bool INSIDE>
struct Boxes<1, INSIDE> {
  EDGE_FN u32 mean(const Job&, const u8* address) {
    u32 data[3];
    gather<1, INSIDE>(address, data);
    return data[0] & 0xffffffu;
  }
};

template <bool INSIDE>
struct Boxes<2, INSIDE> {
  EDGE_FN u32 mean(const Job& job, const u8* address) {
    u32 upper[3], lower[3], sums[3] = {2, 2, 2};  // to round with (sum + 2) >> 2
    gather<2, INSIDE>(address, upper);
    gather<2, INSIDE>(address + job.row_stride, lower);
    accumulate<2>(upper, sums);
    accumulate<2>(lower, sums);
    return packed(sums[0] >> 2, sums[1] >> 2, sums[2] >> 2);
  }
};

template <int BOX, bool INSIDE>
EDGE_FN void load_boxes(const Job& job, const u8* frame, const Window& window, u32* tile, int thread, int threads) {
  const int count = window.rows * window.columns;
  const float inverse = 1.0f / static_cast<float>(window.columns);
  // Halves keep the products away from whole numbers, where a float quotient could be one off.
  int row = static_cast<int>((static_cast<float>(thread) + 0.5f) * inverse);
  int column = thread - row * window.columns;
  const int rows = static_cast<int>((static_cast<float>(threads) + 0.5f) * inverse);
  const int columns = threads - rows * window.columns;
  const i64 box_stride = job.row_stride * job.down;
  const int box_bytes = 3 * job.right;
  const u8* first = frame + window.row * box_stride + static_cast<i64>(window.column) * box_bytes;
#pragma unroll 2
  for (int i = thread; i < count; i += threads) {
    tile[i] = Boxes<BOX, INSIDE>::mean(job, first + row * box_stride + static_cast<i64>(column) * box_bytes);
    row += rows;
    column += columns;
    if (column >= window.columns) {
      column -= window.columns;
      row += 1;
    }
  }
}

// Whether whole words may be read for every box of the window.
EDGE_FN bool inside(const Job& job, const Window& window) {
  const i64 top = job.row_stride * job.down * window.row;
  const i64 bottom = job.row_stride * (static_cast<i64>(job.down) * (window.row + window.rows) - 1);
  const i64 left = static_cast<i64>(3 * job.right) * window.column;
  const i64 right = static_cast<i64>(3 * job.right) * (window.column + window.columns);
  const i64 low = (top < bottom ? top : bottom) + left;
  const i64 high = (top < bottom ? bottom : top) + right;
  return low - 3 >= job.low && high + 6 <= job.high;
}

template <int BOX>
EDGE_FN void load_tile(const Job& job, int frame, const Window& window, u32* tile, int thread, int threads) {
  if (window.rows == 0) return;
  const u8* source = reinterpret_cast<const u8*>(job.source) + frame * job.frame_stride;
  if (inside(job, window))
    load_boxes<BOX, true>(job, source, window, tile, thread, threads);
  else
    load_boxes<BOX, false>(job, source, window, tile, thread, threads);
}

// phase 2: box means to output pixels

// Weighted mean of 2 x 2 packed pixels, per channel, in fixed point; `x` and `y` weigh the second column and row.
EDGE_FN void bilinear(const u32* upper, const u32* lower, int next, int x, int y, u32 values[3]) {
  const u32 weights = static_cast<u32>(kWeightOne - x) | (static_cast<u32>(x) << 16);
  const u32 a = upper[0], b = upper[next], c = lower[0], d = lower[next];
  const u32 above = blue_green(a, b), below = blue_green(c, d);
  const u32 tops[3] = {weighted_low(weights, above), weighted_high(weights, above), weighted_low(weights, red(a, b))};
  const u32 bottoms[3] = {weighted_low(weights, below), weighted_high(weights, below), weighted_low(weights, red(c, d))};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const u32 half = 1u << (2 * kWeightBits - 1);
    values[i] = (tops[i] * (kWeightOne - y) + (bottoms[i] * y + half)) >> (2 * kWeightBits);
  }
}

EDGE_FN void bicubic(const Job& job, const Window& window, const u32* tile, int y, int x, u32 values[3]) {
  int rest;
  float across[4], along[4];
  const int column = centre(x, job.x, &rest);
  cubic_weights(static_cast<float>(rest) * job.x.inverse, across);
  const int row = centre(y, job.y, &rest);
  cubic_weights(static_cast<float>(rest) * job.y.inverse, along);
  float sums[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32* line = tile + (clamped(row - 1 + i, 0, job.y.source - 1) - window.row) * window.columns - window.column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 pixel = line[clamped(column - 1 + j, 0, job.x.source - 1)];
      const float weight = along[i] * across[j];
      sums[0] += weight * static_cast<float>(pixel & 255u);
      sums[1] += weight * static_cast<float>((pixel >> 8) & 255u);
      sums[2] += weight * static_cast<float>(pixel >> 16);
    }
  }
#pragma unroll
  for (int i = 0; i < 3; ++i)
    values[i] = static_cast<u32>(rounded(sums[i] < 0.0f ? 0.0f : (sums[i] > 255.0f ? 255.0f : sums[i])));
}

// Normalize one pixel (values in B, G, R order) and write it to its three planes.
template <typename T>
EDGE_FN void write_pixel(const Job& job, T* target, int y, int x, const u32 values[3]) {
  const i64 plane = static_cast<i64>(job.height) * job.width;
  T* at = target + static_cast<i64>(y) * job.width + x;
  const u32 ordered[3] = {job.reversed ? values[2] : values[0], values[1], job.reversed ? values[0] : values[2]};
#pragma unroll
  for (int i = 0; i < 3; ++i)
    store(at + i * plane, (static_cast<float>(ordered[i]) - job.mean[i]) * job.inverse_std[i]);
}

template <typename T>
EDGE_FN T* target_of(const Job& job, int frame) {
  return reinterpret_cast<T*>(job.target) + static_cast<i64>(frame) * 3 * job.height * job.width;
}

// Thread t writes column t % EDGE_TILE_WIDTH of every (threads / EDGE_TILE_WIDTH)-th row: `threads` is a multiple.
template <bool CUBIC, typename T>
EDGE_FN void write_tile(const Job& job, int frame, const Window& window, const u32* tile, int y, int x, int thread,
                        int threads) {
  T* target = target_of<T>(job, frame);
  const int column = x + thread % EDGE_TILE_WIDTH;
  const int bottom = y + EDGE_TILE_HEIGHT < job.height ? y + EDGE_TILE_HEIGHT : job.height;
  if (column >= job.width) return;
  const int source_column = column - job.left;
  const bool filled = source_column >= 0 && source_column < job.x.target;
  const Tap across = linear_tap(filled ? source_column : 0, job.x);
  const int next = across.at + 1 < job.x.source ? 1 : 0;
  for (int row = y + thread / EDGE_TILE_WIDTH; row < bottom; row += threads / EDGE_TILE_WIDTH) {
    const int source_row = row - job.top;
    u32 values[3] = {static_cast<u32>(job.pad), static_cast<u32>(job.pad), static_cast<u32>(job.pad)};
    if (filled && source_row >= 0 && source_row < job.y.target) {
      if (CUBIC) {
        bicubic(job, window, tile, source_row, source_column, values);
      } else {
        const Tap along = linear_tap(source_row, job.y);
        const u32* upper = tile + (along.at - window.row) * window.columns + (across.at - window.column);
        const u32* lower = along.at + 1 < job.y.source ? upper + window.columns : upper;
        bilinear(upper, lower, next, across.weight, along.weight, values);
      }
    }
    write_pixel(job, target, row, column, values);
  }
}

// nearest: no means, no tile; the source pixel under the centre of each output pixel, floor((i + 0.5) source / target)
template <typename T>
EDGE_FN void write_nearest(const Job& job, int frame, int y, int x, int thread, int threads) {
  T* target = target_of<T>(job, frame);
  const u8* source = reinterpret_cast<const u8*>(job.source) + frame * job.frame_stride;
  const int column = x + thread % EDGE_TILE_WIDTH;
  const int bottom = y + EDGE_TILE_HEIGHT < job.height ? y + EDGE_TILE_HEIGHT : job.height;
  if (column >= job.width) return;
  const int place_column = column - job.left;
  for (int row = y + thread / EDGE_TILE_WIDTH; row < bottom; row += threads / EDGE_TILE_WIDTH) {
    const int place_row = row - job.top;
    u32 values[3] = {static_cast<u32>(job.pad), static_cast<u32>(job.pad), static_cast<u32>(job.pad)};
    if (place_column >= 0 && place_column < job.x.target && place_row >= 0 && place_row < job.y.target) {
      int rest;
      const int source_column = divided((2 * place_column + 1) * job.x.source, job.x, &rest);
      const int source_row = divided((2 * place_row + 1) * job.y.source, job.y, &rest);
      const u8* at = source + source_row * job.row_stride + static_cast<i64>(3) * source_column;
      for (int i = 0; i < 3; ++i) values[i] = byte_at(at + i);
    }
    write_pixel(job, target, row, column, values);
  }
}

}  // namespace edge

#endif  // EDGE_PREPROCESS_PIXEL_H
