// The preprocessing kernel as plain C++: one loop plays the threads of a block, another the blocks.
//
// As a program, `kernel_on_cpu CASES RESULTS` runs every case of a file on memory of exactly its size: built with
// AddressSanitizer, and with every read of a frame checked against the bytes that belong to it. As a shared library,
// edge_launch() runs one launch on the caller's memory.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const unsigned char* readable_low = nullptr;
static const unsigned char* readable_high = nullptr;
static long bad_reads = 0;

#define EDGE_READS(address, bytes)                                                                 \
  do {                                                                                             \
    if (readable_low && ((address) < readable_low || (address) + (bytes) > readable_high)) ++bad_reads; \
  } while (0)

#include "preprocess_pixel.h"

using edge::Job;
using edge::u32;

static_assert(sizeof(Job) == 120, "kernels.py packs 120 bytes");

struct Launch {
  char kernel[32];
  Job job;
  int grid_x, grid_y, frames, reserved;
  long long shared_bytes;
};
static_assert(sizeof(Launch) == 176, "the tests pack 176 bytes");

template <int BOX, bool CUBIC, typename T>
static void resized(const Launch& launch, int frame, int y, int x, u32* shared) {
  const edge::Window window = edge::window_of(launch.job, y, x, CUBIC ? 1 : 0);
  for (int t = 0; t < EDGE_THREADS; ++t) edge::load_tile<BOX>(launch.job, frame, window, shared, y, t);
  for (int t = 0; t < EDGE_THREADS; ++t)
    edge::write_tile<CUBIC, T>(launch.job, frame, window, shared, y, x, t);
}

template <typename T>
static void nearest(const Launch& launch, int frame, int y, int x, u32*) {
  for (int t = 0; t < EDGE_THREADS; ++t) edge::write_nearest<T>(launch.job, frame, y, x, t);
}

typedef void (*Block)(const Launch&, int, int, int, u32*);

static Block block_of(const char* kernel) {
  const struct {
    const char* name;
    Block block;
  } known[] = {
      {"edge_bilinear_1_f32", resized<1, false, float>}, {"edge_bilinear_1_f16", resized<1, false, edge::u16>},
      {"edge_bilinear_2_f32", resized<2, false, float>}, {"edge_bilinear_2_f16", resized<2, false, edge::u16>},
      {"edge_bilinear_n_f32", resized<0, false, float>}, {"edge_bilinear_n_f16", resized<0, false, edge::u16>},
      {"edge_bicubic_n_f32", resized<0, true, float>},   {"edge_bicubic_n_f16", resized<0, true, edge::u16>},
      {"edge_nearest_f32", nearest<float>},              {"edge_nearest_f16", nearest<edge::u16>},
  };
  for (const auto& entry : known)
    if (strcmp(entry.name, kernel) == 0) return entry.block;
  return nullptr;
}

extern "C" int edge_launch(const Launch* launch) {
  const Block block = block_of(launch->kernel);
  if (!block) return 1;
  u32* shared = static_cast<u32*>(malloc(launch->shared_bytes ? launch->shared_bytes : 1));
  for (int frame = 0; frame < launch->frames; ++frame)
    for (int y = 0; y < launch->grid_y; ++y)
      for (int x = 0; x < launch->grid_x; ++x) {
        if (launch->shared_bytes) memset(shared, 0xff, launch->shared_bytes);
        block(*launch, frame, y * EDGE_TILE_HEIGHT, x * EDGE_TILE_WIDTH, shared);
      }
  free(shared);
  return 0;
}

// In a case file job.source is an offset into the frame's memory, which begins `shift` bytes into its allocation.
struct Case {
  Launch launch;
  long long shift, source_bytes, target_bytes;
};

int main(int count, char** arguments) {
  if (count != 3) return 2;
  FILE* cases = fopen(arguments[1], "rb");
  FILE* results = fopen(arguments[2], "wb");
  if (!cases || !results) return 2;
  Case item;
  while (fread(&item, sizeof item, 1, cases) == 1) {
    unsigned char* memory = static_cast<unsigned char*>(malloc(item.shift + item.source_bytes));
    unsigned char* target = static_cast<unsigned char*>(malloc(item.target_bytes));
    memset(memory, 0xff, item.shift);
    if (fread(memory + item.shift, 1, item.source_bytes, cases) != static_cast<size_t>(item.source_bytes)) return 3;
    memset(target, 0xff, item.target_bytes);  // NaN as float32 and as float16: what is not written shows
    readable_low = memory + item.shift;
    readable_high = readable_low + item.source_bytes;
    item.launch.job.source += reinterpret_cast<edge::u64>(readable_low);
    item.launch.job.target = reinterpret_cast<edge::u64>(target);
    if (edge_launch(&item.launch) != 0) return 4;
    fwrite(target, 1, item.target_bytes, results);
    free(memory);
    free(target);
  }
  fclose(cases);
  if (fclose(results) != 0) return 5;
  if (bad_reads) fprintf(stderr, "%ld reads outside of the frame\n", bad_reads);
  return bad_reads ? 6 : 0;
}
