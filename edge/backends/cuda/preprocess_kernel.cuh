// edge's preprocessing on the GPU: uint8 BGR rows to normalized float32 or float16 planes.
//
// What it computes is defined in edge/model/preprocessing.py. First source pixels and weights per output column and row
// come as tables (kernels.py); they are the ones of the CPU path, both paths compute with whole numbers, and they give
// the same 8-bit pixels. The same text compiles as CUDA, where the threads of a block share the work, and as plain C++,
// where a loop plays the threads: parity and bounds are checked without a GPU.
//
// Grid: x and y are the tiles of the output, z is the frame. A block of `filter` (bilinear, bicubic) takes the source
// rows of its tile 32 at a time: `stage` brings them to shared memory, four pixels of one channel to a word; `sum_along_x`
// makes output columns of them, four source rows to a thread, and keeps these as bytes, four rows to a word. At the end
// `write_filtered` sums those along y, normalizes and writes, one output column to a thread. There is a barrier between
// all of these. Both sums multiply four pixels with four weights in two instructions. `nearest` needs one step.
//
// Rows start at multiples of four bytes. No directive includes a header here: PyCUDA runs the compiler's preprocessor
// over any source that has one before it looks into its cache. A plain C++ includer brings <math.h> and <string.h> first.

#ifdef __CUDACC__
#define EDGE_FN static __device__ __forceinline__
#else
#define EDGE_FN static inline
#endif

// Called before every read of a frame in plain C++; a test defines it to check bounds to the byte.
#ifndef EDGE_READS
#define EDGE_READS(address, bytes) ((void)0)
#endif

namespace edge {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

const int kThreads = 128;  // of a block
const int kRows = 32;      // source rows that are staged at a time
const int kPitch = 36;     // words from a group of four columns to the next in shared memory: no bank conflicts

// Where the picture lies along one axis of the output, and what its output pixels are made of: pixel i is the sum of
// weights times source pixels, in groups of four, from group first[i] on.
struct Axis {
  u64 first;    // address of int[count]
  u64 weights;  // address of short[groups][count][4], in 1/16384
  int count;    // output pixels that show the picture
  int groups;   // of each
  int place;    // the first of them in the output
  int output;   // all output pixels
  int tile;     // output pixels of a block
  int reserved;
};

// Everything about one launch; kernels.py packs the same layout. Distances are in bytes.
struct Job {
  u64 source;        // address of the first pixel of frame 0, a multiple of 4; 16 bytes behind a frame are readable
  u64 target;        // address of frame 0's output: 3 x height x width, float32 or float16, contiguous
  i64 frame_stride;  // from a frame to the next, a multiple of 4
  i64 row_stride;    // from a row to the next, a multiple of 4; negative when the rows run upwards
  Axis x;
  Axis y;
  int rows;        // of the source
  int bytes_from;  // where the bytes of the first sum lie in shared memory, a multiple of 4
  int pitch;       // of these bytes, from a column to the next: an odd multiple of 4
  int reversed;    // 1: output channels are R, G, B; 0: B, G, R
  float scale[3];  // output = value * scale + offset, for blue, green and red
  float offset[3];
  int pad;  // letterbox margin, 0 to 255
  int reserved;
};

EDGE_FN int smaller(int a, int b) { return a < b ? a : b; }
EDGE_FN int larger(int a, int b) { return a > b ? a : b; }

template <typename T>
EDGE_FN T entry(u64 table, int index) {
#ifdef __CUDACC__
  return __ldg(reinterpret_cast<const T*>(table) + index);
#else
  return reinterpret_cast<const T*>(table)[index];
#endif
}

// Two weights each.
struct Weights {
  u32 low, high;
};

EDGE_FN Weights weights_at(u64 table, int index) {
#ifdef __CUDACC__
  const uint2 found = __ldg(reinterpret_cast<const uint2*>(table) + index);
  return {found.x, found.y};
#else
  return reinterpret_cast<const Weights*>(table)[index];
#endif
}

// sum + the four bytes of `pixels` times the four weights.
EDGE_FN int multiplied(const Weights& weights, u32 pixels, int sum) {
#ifdef __CUDACC__
  asm("dp2a.lo.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(weights.low), "r"(pixels));
  asm("dp2a.hi.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(weights.high), "r"(pixels));
#else
  const u32 pairs[2] = {weights.low, weights.high};
  for (int i = 0; i < 4; ++i)
    sum += static_cast<short>(pairs[i / 2] >> (16 * (i % 2))) * static_cast<int>((pixels >> (8 * i)) & 255u);
#endif
  return sum;
}

const int kHalf = 1 << 13;  // what a sum starts with, so that the shift rounds

EDGE_FN int rounded(int sum) {
  const int value = sum >> 14;
  return value < 0 ? 0 : (value > 255 ? 255 : value);
}

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

// Three words of four pixels B G R B, G R B G, R B G R to one of each channel.
EDGE_FN void separated(const u32 words[3], u32 channels[3]) {
#ifdef __CUDACC__
  channels[0] = __byte_perm(__byte_perm(words[0], words[1], 0x0630), words[2], 0x5210);
  channels[1] = __byte_perm(__byte_perm(words[0], words[1], 0x0741), words[2], 0x6210);
  channels[2] = __byte_perm(__byte_perm(words[0], words[1], 0x0052), words[2], 0x7410);
#else
  for (int channel = 0; channel < 3; ++channel) {
    channels[channel] = 0;
    for (int i = 0; i < 4; ++i) {
      const int byte = 3 * i + channel;
      channels[channel] |= ((words[byte / 4] >> (8 * (byte % 4))) & 255u) << (8 * i);
    }
  }
#endif
}

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

// Normalize one pixel, blue, green and red, and write it to the planes of its frame.
template <typename T>
EDGE_FN void write_pixel(const Job& job, int frame, int y, int x, const float values[3]) {
  const i64 plane = static_cast<i64>(job.y.output) * job.x.output;
  T* at = reinterpret_cast<T*>(job.target) + (3 * frame * plane + static_cast<i64>(y) * job.x.output + x);
#pragma unroll
  for (int channel = 0; channel < 3; ++channel)
    store(at + (job.reversed ? 2 - channel : channel) * plane,
          values[channel] * job.scale[channel] + job.offset[channel]);
}

// What of one axis a tile shows: output pixels [begin, end), counted from the axis's place, and the groups of four source
// pixels that they need.
struct Span {
  int begin, end, first, groups;
};

EDGE_FN Span span_of(const Axis& axis, int number) {
  Span span = {larger(number * axis.tile - axis.place, 0), smaller((number + 1) * axis.tile - axis.place, axis.count), 0,
               0};
  if (span.begin < span.end) {
    span.first = entry<int>(axis.first, span.begin);
    span.groups = entry<int>(axis.first, span.end - 1) + axis.groups - span.first;
  }
  return span;
}

// shared[(channel * groups + group) * kPitch + row] becomes four pixels of source row `done` + row of the span.
EDGE_FN void stage(const Job& job, int frame, const Span& across, const Span& down, int done, u32* shared, int thread) {
  const int row = 4 * down.first + done + thread % 4, rows = smaller(4 * (down.first + down.groups), job.rows);
  const u8* source = reinterpret_cast<const u8*>(job.source) + frame * job.frame_stride + row * job.row_stride;
  for (int group = thread / 4; group < across.groups; group += kThreads / 4) {
    const u8* at = source + 12 * (across.first + group);
    u32* target = shared + group * kPitch + thread % 4;
#pragma unroll
    for (int i = 0; i < kRows; i += 4, at += 4 * job.row_stride) {
      // What is left out is multiplied by zero.
      if (row + i >= rows) continue;
      const u32 words[3] = {word_at(at), word_at(at + 4), word_at(at + 8)};
      u32 channels[3];
      separated(words, channels);
#pragma unroll
      for (int channel = 0; channel < 3; ++channel) target[channel * across.groups * kPitch + i] = channels[channel];
    }
  }
}

struct FourWords {
  u32 row[4];
};

EDGE_FN FourWords four_at(const u32* address) {
#ifdef __CUDACC__
  const uint4 found = *reinterpret_cast<const uint4*>(address);
  return {{found.x, found.y, found.z, found.w}};
#else
  return *reinterpret_cast<const FourWords*>(address);
#endif
}

// Bytes row to row + 3 of words[(channel * tile + column) * pitch] become the sums along x of these staged rows.
EDGE_FN void sum_along_x(const Job& job, const Span& across, const Span& down, int done, u32* shared, int thread) {
  const int quads = kRows / 4, row = 4 * (thread % quads);
  if (done + row >= 4 * down.groups) return;
  for (int column = across.begin + thread / quads; column < across.end; column += kThreads / quads) {
    const u32* at = shared + (entry<int>(job.x.first, column) - across.first) * kPitch + row;
    int sums[3][4];
#pragma unroll
    for (int i = 0; i < 12; ++i) sums[i / 4][i % 4] = kHalf;
#pragma unroll 3
    for (int group = 0; group < job.x.groups; ++group, at += kPitch) {
      const Weights weights = weights_at(job.x.weights, group * job.x.count + column);
#pragma unroll
      for (int channel = 0; channel < 3; ++channel) {
        const FourWords pixels = four_at(at + channel * across.groups * kPitch);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[channel][i] = multiplied(weights, pixels.row[i], sums[channel][i]);
      }
    }
    u32* words = shared + (job.bytes_from + (column - across.begin) * job.pitch + done + row) / 4;
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      u32 word = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) word |= static_cast<u32>(rounded(sums[channel][i])) << (8 * i);
      words[channel * job.x.tile * job.pitch / 4] = word;
    }
  }
}

EDGE_FN void fill(float values[3], int value) { values[0] = values[1] = values[2] = static_cast<float>(value); }

// Sums along y, written; the letterbox margin, too.
template <typename T>
EDGE_FN void write_filtered(const Job& job, int frame, int tile_y, int tile_x, const Span& across, const Span& down,
                            const u32* shared, int thread) {
  const int x = tile_x * job.x.tile + thread % job.x.tile, column = x - job.x.place;
  const int end = smaller((tile_y + 1) * job.y.tile, job.y.output);
  if (x >= job.x.output) return;
  for (int y = tile_y * job.y.tile + thread / job.x.tile; y < end; y += kThreads / job.x.tile) {
    const int row = y - job.y.place;
    float values[3];
    fill(values, job.pad);
    if (row >= down.begin && row < down.end && column >= across.begin && column < across.end) {
      const u32* at = shared + (job.bytes_from + (column - across.begin) * job.pitch) / 4 +
                      entry<int>(job.y.first, row) - down.first;
      int sums[3] = {kHalf, kHalf, kHalf};
#pragma unroll 2
      for (int group = 0; group < job.y.groups; ++group) {
        const Weights weights = weights_at(job.y.weights, group * job.y.count + row);
#pragma unroll
        for (int i = 0; i < 3; ++i) sums[i] = multiplied(weights, at[i * job.x.tile * job.pitch / 4 + group], sums[i]);
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) values[i] = static_cast<float>(rounded(sums[i]));
    }
    write_pixel<T>(job, frame, y, x, values);
  }
}

// Nearest: the source pixel under each output pixel's centre; `first` counts pixels here.
template <typename T>
EDGE_FN void write_nearest(const Job& job, int frame, int tile_y, int tile_x, int thread) {
  const int x = tile_x * job.x.tile + thread % job.x.tile, column = x - job.x.place;
  const int end = smaller((tile_y + 1) * job.y.tile, job.y.output);
  if (x >= job.x.output) return;
  const u8* source = reinterpret_cast<const u8*>(job.source) + frame * job.frame_stride;
  for (int y = tile_y * job.y.tile + thread / job.x.tile; y < end; y += kThreads / job.x.tile) {
    const int row = y - job.y.place;
    float values[3];
    fill(values, job.pad);
    if (row >= 0 && row < job.y.count && column >= 0 && column < job.x.count) {
      const u8* at = source + entry<int>(job.y.first, row) * job.row_stride + 3 * entry<int>(job.x.first, column);
#pragma unroll
      for (int i = 0; i < 3; ++i) values[i] = static_cast<float>(byte_at(at + i));
    }
    write_pixel<T>(job, frame, y, x, values);
  }
}

}  // namespace edge

#ifdef __CUDACC__
#define EDGE_KERNELS(TYPE, SUFFIX)                                                                                   \
  extern "C" __global__ void edge_filter_##SUFFIX(const edge::Job job) {                                             \
    extern __shared__ __align__(16) edge::u32 shared[];                                                              \
    const edge::Span across = edge::span_of(job.x, blockIdx.x), down = edge::span_of(job.y, blockIdx.y);             \
    for (int done = 0; done < 4 * down.groups; done += edge::kRows) {                                                \
      edge::stage(job, blockIdx.z, across, down, done, shared, threadIdx.x);                                         \
      __syncthreads();                                                                                               \
      edge::sum_along_x(job, across, down, done, shared, threadIdx.x);                                               \
      __syncthreads();                                                                                               \
    }                                                                                                                \
    edge::write_filtered<TYPE>(job, blockIdx.z, blockIdx.y, blockIdx.x, across, down, shared, threadIdx.x);          \
  }                                                                                                                  \
  extern "C" __global__ void edge_nearest_##SUFFIX(const edge::Job job) {                                            \
    edge::write_nearest<TYPE>(job, blockIdx.z, blockIdx.y, blockIdx.x, threadIdx.x);                                 \
  }
EDGE_KERNELS(float, f32)
EDGE_KERNELS(edge::u16, f16)
#endif
