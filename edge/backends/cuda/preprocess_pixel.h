// The arithmetic of edge's GPU preprocessing, for one block of output pixels at a time.
//
// It computes what edge/model/preprocessing.py defines (crop or letterbox or squash; means of whole boxes when shrinking by two
// or more; nearest, bilinear or bicubic with half-pixel centres; channel order; (x - mean) / std), straight from uint8
// BGR rows of any stride to normalized planes. The same text compiles as CUDA, where the threads of a block share
// the work, and as plain C++, where a loop plays the threads: so parity and bounds are checked without a GPU.
//
// A block goes through two phases with a barrier between them:
//   load_tile   reduces the source pixels that its output tile needs to box means, packed B | G<<8 | R<<16, in `shared`
//   write_tile  interpolates among them, normalizes, and writes every pixel of the tile, letterbox margin included
//
// A plain C++ includer brings <math.h> and <string.h> first. No directive brings them here: PyCUDA runs the compiler's
// preprocessor over any source that holds one before it even looks into its cache.

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

// Output pixels and threads of one block: what kernels.py launches with. The width is a divisor of the threads.
#ifndef EDGE_TILE_WIDTH
#define EDGE_TILE_WIDTH 32
#endif
#ifndef EDGE_TILE_HEIGHT
#define EDGE_TILE_HEIGHT 32
#endif
#ifndef EDGE_THREADS
#define EDGE_THREADS 128
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
  int row_stride;    // from a row to the next; negative when the rows run upwards
  int low;           // [source + low, source + high) is the memory that belongs to a frame
  int high;
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
  float scale[3];  // output = value * scale + offset, for blue, green and red
  float offset[3];
  float inverse_area;  // 1 / (right down)
};

// The reduced pixels that one output tile reads. In shared memory a line takes `pitch`, an even number, of them.
struct Window {
  int row;
  int column;
  int rows;
  int columns;
  int pitch;
};

// One output coordinate between two reduced pixels: `at`, the next, and the weight of the next in 1/2048.
struct Tap {
  int at;
  int weight;
};

// The same for one output row of a tile; `at` counts reduced pixels from the tile's first.
struct RowTap {
  int at;
  u32 weight;  // kMargin: the row is letterbox margin
};

const u32 kMargin = 0xffffffffu;

// Shared memory of a block: EDGE_TILE_HEIGHT RowTaps, then the reduced pixels.
EDGE_FN RowTap* row_taps(u32* shared) { return reinterpret_cast<RowTap*>(shared); }
EDGE_FN u32* pixels(u32* shared) { return shared + 2 * EDGE_TILE_HEIGHT; }

static_assert(EDGE_THREADS % EDGE_TILE_WIDTH == 0, "a block writes whole rows of its tile");

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

// Bits 8 to 15 of three numbers, side by side.
EDGE_FN u32 second_bytes(const u32 numbers[3]) {
#ifdef __CUDACC__
  return __byte_perm(__byte_perm(numbers[0], numbers[1], 0x0051), numbers[2], 0x7510) & 0xffffffu;
#else
  return ((numbers[0] >> 8) & 255u) | (numbers[1] & 0xff00u) | ((numbers[2] & 0xff00u) << 8);
#endif
}

// Two words to an address that is a multiple of 8.
EDGE_FN void store_pair(u32* target, const u32 words[2]) {
#ifdef __CUDACC__
  *reinterpret_cast<uint2*>(target) = make_uint2(words[0], words[1]);
#else
  target[0] = words[0];
  target[1] = words[1];
#endif
}

// To the nearest integer, halves to even, for 0 <= value < 2^22: the sum leaves no bits for a fraction.
EDGE_FN float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

// a * b rounded on its own: contracted with the sum behind it into one fused step, a mean that lies halfway between two
// integers would go the other way than on a CPU, and interpolation can make two steps of that one.
EDGE_FN float product(float a, float b) {
#ifdef __CUDACC__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

EDGE_FN float reciprocal(float value) {
#ifdef __CUDACC__
  return __fdividef(1.0f, value);  // a few units in the last place
#else
  return 1.0f / value;
#endif
}

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

// Beyond the outermost centres the border pixel counts alone: the last one as the second of its pair. A single pixel
// has no pair; then the second weighs nothing, and is read from the slack that kernels.py leaves in shared memory.
EDGE_FN Tap linear_tap(int index, const Axis& axis) {
  Tap tap;
  int rest;
  tap.at = centre(index, axis, &rest);
  tap.weight = static_cast<int>(static_cast<float>(rest) * axis.inverse * kWeightOne + 0.5f);
  if (tap.at < 0) {
    tap.at = 0;
    tap.weight = 0;
  } else if (tap.at >= axis.source - 1) {
    tap.at = axis.source > 1 ? axis.source - 2 : 0;
    tap.weight = axis.source > 1 ? kWeightOne : 0;
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
  const int low = clamped(centre(first, axis, &rest) - reach, 0, axis.source > 1 ? axis.source - 2 : 0);
  const int high = clamped(centre(last, axis, &rest) + 1 + reach, 0, axis.source - 1);
  *start = low;
  *count = high - low + 1;
}

// What the tile whose first output pixel is (y, x) reads; no rows where it lies in the letterbox margin.
EDGE_FN Window window_of(const Job& job, int y, int x, int reach) {
  Window window = {0, 0, 0, 0, 0};
  const int top = y > job.top ? y - job.top : 0;
  const int left = x > job.left ? x - job.left : 0;
  const int bottom = clamped(y + EDGE_TILE_HEIGHT - job.top, 0, job.y.target);
  const int right = clamped(x + EDGE_TILE_WIDTH - job.left, 0, job.x.target);
  if (top < bottom && left < right) {
    span(top, bottom - 1, job.y, reach, &window.row, &window.rows);
    span(left, right - 1, job.x, reach, &window.column, &window.columns);
    window.pitch = (window.columns + 1) & ~1;
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

// Add UNIT times the pixels FIRST to LAST - 1 of `data` to the sums of blue, green and red.
template <int FIRST, int LAST, u32 UNIT>
EDGE_FN void accumulate(const u32 data[3], u32 sums[3]) {
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) {
#pragma unroll
    for (int word = 0; word < 3; ++word) {
      u32 mask = 0;
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        const int position = 4 * word + byte;
        if (position >= 3 * FIRST && position < 3 * LAST && position % 3 == channel) mask |= UNIT << (8 * byte);
      }
      if (mask != 0) sums[channel] = add_bytes(data[word], mask, sums[channel]);
    }
  }
}

template <int N, bool INSIDE>
EDGE_FN void add_pixels(const u8* address, u32 sums[3]) {
  u32 data[3];
  gather<N, INSIDE>(address, data);
  accumulate<0, N, 1>(data, sums);
}

template <bool INSIDE>
EDGE_FN void add_row(const u8* address, int pixels, u32 sums[3]) {
#pragma unroll 1
  for (; pixels >= 4; pixels -= 4, address += 12) add_pixels<4, INSIDE>(address, sums);
  if (pixels == 3)
    add_pixels<3, INSIDE>(address, sums);
  else if (pixels == 2)
    add_pixels<2, INSIDE>(address, sums);
  else if (pixels == 1)
    add_pixels<1, INSIDE>(address, sums);
}

// Mean of the box of job.down x job.right pixels that starts at `address`.
template <bool INSIDE>
EDGE_FN u32 box_mean(const Job& job, const u8* address) {
  u32 sums[3] = {0, 0, 0}, means[3];
#pragma unroll 1
  for (int row = 0; row < job.down; ++row, address += job.row_stride) add_row<INSIDE>(address, job.right, sums);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    // OpenCV rounds a mean of 2 x 2 with (sum + 2) >> 2, and all others to the nearest, halves to even.
    const float mean = rounded(product(static_cast<float>(sums[i]), job.inverse_area));
    means[i] = job.down == 2 && job.right == 2 ? (sums[i] + 2) >> 2 : static_cast<u32>(mean);
  }
  return means[0] | (means[1] << 8) | (means[2] << 16);
}

// Means of the box at `address` and, when `both`, of its neighbour to the right.
// BOX 1: boxes are single pixels; 2: of 2 x 2; 0: of any size. The fast ones read the neighbour in any case.
template <int BOX, bool INSIDE>
struct Boxes {
  EDGE_FN void pair(const Job& job, const u8* address, bool both, u32 means[2]) {
    means[0] = box_mean<INSIDE>(job, address);
    means[1] = both ? box_mean<INSIDE>(job, address + 3 * job.right) : 0u;
  }
};

template <>
struct Boxes<1, true> {
  EDGE_FN void pair(const Job&, const u8* address, bool, u32 means[2]) {
    u32 data[3];
    gather<2, true>(address, data);
    means[0] = data[0] & 0xffffffu;
    means[1] = shifted(data[0], data[1], 24) & 0xffffffu;
  }
};

template <>
struct Boxes<2, true> {
  EDGE_FN void pair(const Job& job, const u8* address, bool, u32 means[2]) {
    // 64 (sum + 2) holds (sum + 2) >> 2 in its second byte.
    u32 upper[3], lower[3], left[3] = {128, 128, 128}, right[3] = {128, 128, 128};
    gather<4, true>(address, upper);
    gather<4, true>(address + job.row_stride, lower);
    accumulate<0, 2, 64>(upper, left);
    accumulate<0, 2, 64>(lower, left);
    accumulate<2, 4, 64>(upper, right);
    accumulate<2, 4, 64>(lower, right);
    means[0] = second_bytes(left);
    means[1] = second_bytes(right);
  }
};

// Thread t takes pairs t, t + EDGE_THREADS, ... of the window, line by line. Offsets wrap past the last, where none is
// read.
template <int BOX, bool INSIDE>
EDGE_FN void load_boxes(const Job& job, const u8* frame, const Window& window, u32* tile, int thread) {
  const int width = window.pitch / 2, count = window.rows * width;
  const float inverse = reciprocal(static_cast<float>(width));
  // Halves keep the quotients away from whole numbers.
  const int row = static_cast<int>((static_cast<float>(thread) + 0.5f) * inverse);
  const int rows = static_cast<int>((static_cast<float>(EDGE_THREADS) + 0.5f) * inverse);
  const int columns = EDGE_THREADS - rows * width;
  const u32 pair_bytes = static_cast<u32>(6 * job.right), stride = static_cast<u32>(job.row_stride * job.down);
  const u32 step = static_cast<u32>(rows) * stride + static_cast<u32>(columns) * pair_bytes;
  const u32 wrap = stride - static_cast<u32>(width) * pair_bytes;
  int column = thread - row * width;
  u32 offset = static_cast<u32>(window.row + row) * stride + static_cast<u32>(window.column * job.right * 3) +
               static_cast<u32>(column) * pair_bytes;
#pragma unroll(INSIDE && BOX != 0 ? 2 : 1)
  for (int i = thread; i < count; i += EDGE_THREADS) {
    u32 means[2];
    Boxes<BOX, INSIDE>::pair(job, frame + static_cast<int>(offset), 2 * column + 1 < window.columns, means);
    store_pair(tile + 2 * i, means);
    offset += step;
    column += columns;
    if (column >= width) {
      column -= width;
      offset += wrap;
    }
  }
}

// Whether whole words may be read for every pair of the window.
EDGE_FN bool inside(const Job& job, const Window& window) {
  const int first = job.row_stride * (job.down * window.row);
  const int last = job.row_stride * (job.down * (window.row + window.rows) - 1);
  const int left = 3 * job.right * window.column;
  const int low = (first < last ? first : last) + left;
  const int high = (first < last ? last : first) + left + 3 * job.right * window.pitch;
  return low - 3 >= job.low && high + 6 <= job.high;
}

EDGE_FN RowTap row_tap(const Job& job, const Window& window, int row) {
  RowTap result = {0, kMargin};
  if (row >= 0 && row < job.y.target && window.rows != 0) {
    const Tap tap = linear_tap(row, job.y);
    result.at = (tap.at - window.row) * window.pitch;
    result.weight = static_cast<u32>(tap.weight);
  }
  return result;
}

template <int BOX>
EDGE_FN void load_tile(const Job& job, int frame, const Window& window, u32* shared, int y, int thread) {
#pragma unroll 1
  for (int i = thread; i < EDGE_TILE_HEIGHT; i += EDGE_THREADS)
    row_taps(shared)[i] = row_tap(job, window, y + i - job.top);
  if (window.rows == 0) return;
  const u8* source = reinterpret_cast<const u8*>(job.source) + frame * job.frame_stride;
  if (inside(job, window))
    load_boxes<BOX, true>(job, source, window, pixels(shared), thread);
  else
    load_boxes<0, false>(job, source, window, pixels(shared), thread);
}

// phase 2: box means to output pixels

// Where one output pixel goes in the three planes, by source channel.
template <typename T>
struct Spot {
  T* blue;
  T* green;
  T* red;
};

template <typename T>
EDGE_FN Spot<T> spot_of(const Job& job, int frame, int y, int x) {
  const i64 plane = static_cast<i64>(job.height) * job.width;
  const i64 within = static_cast<i64>(y) * job.width + x;
  T* first = reinterpret_cast<T*>(job.target) + static_cast<i64>(frame) * 3 * plane + within;
  T* third = first + 2 * plane;
  Spot<T> spot = {job.reversed ? third : first, first + plane, job.reversed ? first : third};
  return spot;
}

template <typename T>
EDGE_FN void write_pixel(const Job& job, const Spot<T>& spot, int ahead, const u32 values[3]) {
  store(spot.blue + ahead, static_cast<float>(values[0]) * job.scale[0] + job.offset[0]);
  store(spot.green + ahead, static_cast<float>(values[1]) * job.scale[1] + job.offset[1]);
  store(spot.red + ahead, static_cast<float>(values[2]) * job.scale[2] + job.offset[2]);
}

EDGE_FN void set_all(u32 values[3], int value) { values[0] = values[1] = values[2] = static_cast<u32>(value); }

// Weighted mean of 2 x 2 packed pixels, per channel, in fixed point. `weights` holds those of the left and of the right
// column, 16 bits each, `weight` that of the lower row.
EDGE_FN void bilinear(const u32* upper, const u32* lower, u32 weights, u32 weight, u32 values[3]) {
  const u32 a = blue_green(upper[0], upper[1]), a_red = red(upper[0], upper[1]);
  const u32 b = blue_green(lower[0], lower[1]), b_red = red(lower[0], lower[1]);
  const u32 tops[3] = {weighted_low(weights, a), weighted_high(weights, a), weighted_low(weights, a_red)};
  const u32 bottoms[3] = {weighted_low(weights, b), weighted_high(weights, b), weighted_low(weights, b_red)};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const u32 half = 1u << (2 * kWeightBits - 1);
    values[i] = (tops[i] * (kWeightOne - weight) + (bottoms[i] * weight + half)) >> (2 * kWeightBits);
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
    const int line = (clamped(row - 1 + i, 0, job.y.source - 1) - window.row) * window.pitch - window.column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 pixel = tile[line + clamped(column - 1 + j, 0, job.x.source - 1)];
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

// Whether an output tile lies wholly in the resized region, and in the output.
EDGE_FN bool covered(const Job& job, int y, int x) {
  return y >= job.top && y + EDGE_TILE_HEIGHT <= job.top + job.y.target && x >= job.left &&
         x + EDGE_TILE_WIDTH <= job.left + job.x.target;
}

const int kRowStep = EDGE_THREADS / EDGE_TILE_WIDTH;  // thread t writes column t % width of every kRowStep-th row

// A covered tile, bilinear: no row or column needs a test.
template <typename T>
EDGE_FN void write_covered(const Job& job, int frame, const Window& window, u32* shared, int y, int x, int thread) {
  const int row = thread / EDGE_TILE_WIDTH, column = x + thread % EDGE_TILE_WIDTH;
  const Tap across = linear_tap(column - job.left, job.x);
  const u32 weights = static_cast<u32>(kWeightOne - across.weight) | (static_cast<u32>(across.weight) << 16);
  const u32* left = pixels(shared) + (across.at - window.column);
  const RowTap* taps = row_taps(shared) + row;
  Spot<T> spot = spot_of<T>(job, frame, y + row, column);
#pragma unroll 4
  for (int i = 0; i < EDGE_TILE_HEIGHT / kRowStep; ++i) {
    const RowTap along = taps[i * kRowStep];
    const u32* upper = left + along.at;
    u32 values[3];
    bilinear(upper, upper + window.pitch, weights, along.weight, values);
    write_pixel(job, spot, i * kRowStep * job.width, values);
  }
}

template <bool CUBIC, typename T>
EDGE_FN void write_tile(const Job& job, int frame, const Window& window, u32* shared, int y, int x, int thread) {
  if (!CUBIC && EDGE_TILE_HEIGHT % kRowStep == 0 && covered(job, y, x)) {
    write_covered<T>(job, frame, window, shared, y, x, thread);
    return;
  }
  const int first = thread / EDGE_TILE_WIDTH, column = x + thread % EDGE_TILE_WIDTH;
  if (column >= job.width) return;
  const Spot<T> spot = spot_of<T>(job, frame, y, column);
  const int source_column = column - job.left;
  const bool filled = source_column >= 0 && source_column < job.x.target;
  const Tap across = linear_tap(filled ? source_column : 0, job.x);
  const u32 weights = static_cast<u32>(kWeightOne - across.weight) | (static_cast<u32>(across.weight) << 16);
  const int left = across.at - window.column;
  const int rows = job.height - y < EDGE_TILE_HEIGHT ? job.height - y : EDGE_TILE_HEIGHT;
#pragma unroll 1
  for (int row = first; row < rows; row += kRowStep) {
    const RowTap along = row_taps(shared)[row];
    u32 values[3];
    if (!filled || along.weight == kMargin) {
      set_all(values, job.pad);
    } else if (CUBIC) {
      bicubic(job, window, pixels(shared), y + row - job.top, source_column, values);
    } else {
      const u32* upper = pixels(shared) + left + along.at;
      bilinear(upper, upper + window.pitch, weights, along.weight, values);
    }
    write_pixel(job, spot, row * job.width, values);
  }
}

// nearest: no means, no tile; the source pixel under each output pixel's centre, floor((i + 0.5) source / target)
template <typename T>
EDGE_FN void write_nearest(const Job& job, int frame, int y, int x, int thread) {
  const int first = thread / EDGE_TILE_WIDTH, column = x + thread % EDGE_TILE_WIDTH;
  if (column >= job.width) return;
  const Spot<T> spot = spot_of<T>(job, frame, y, column);
  const u8* source = reinterpret_cast<const u8*>(job.source) + frame * job.frame_stride;
  const int rows = job.height - y < EDGE_TILE_HEIGHT ? job.height - y : EDGE_TILE_HEIGHT;
  const int place_column = column - job.left;
  const bool filled = place_column >= 0 && place_column < job.x.target;
  int rest;
  const int source_column = divided((2 * (filled ? place_column : 0) + 1) * job.x.source, job.x, &rest);
#pragma unroll 2
  for (int row = first; row < rows; row += kRowStep) {
    const int place_row = y + row - job.top;
    u32 values[3];
    set_all(values, job.pad);
    if (filled && place_row >= 0 && place_row < job.y.target) {
      const int source_row = divided((2 * place_row + 1) * job.y.source, job.y, &rest);
      const u8* at = source + (source_row * job.row_stride + 3 * source_column);
      for (int i = 0; i < 3; ++i) values[i] = byte_at(at + i);
    }
    write_pixel(job, spot, row * job.width, values);
  }
}

}  // namespace edge

#endif  // EDGE_PREPROCESS_PIXEL_H
