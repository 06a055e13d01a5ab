// The preprocessing kernel as plain C++: one loop plays the threads of a block, another the blocks.
//
// As a program, `kernel_on_cpu CASES RESULTS` runs every case of a file on memory of exactly its size: built with
// AddressSanitizer, and with every read of a frame checked against the bytes that belong to it. As a shared library,
// edge_launch() runs one launch on the caller's memory.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

static const unsigned char* readable_low = nullptr;
static const unsigned char* readable_high = nullptr;
static long bad_reads = 0;

#define EDGE_READS(address, bytes)                                                                 \
  do {                                                                                             \
    if (readable_low && ((address) < readable_low || (address) + (bytes) > readable_high)) ++bad_reads; \
  } while (0)

#include "preprocess_kernel.cuh"

using edge::Job;
using edge::u32;

static_assert(sizeof(Job) == 160, "kernels.py packs 160 bytes");

struct Launch {
  char kernel[32];
  Job job;
  int grid_x, grid_y, frames, reserved;
  long long shared_bytes;
};
static_assert(sizeof(Launch) == 216, "the tests pack 216 bytes");

template <typename T>
static void filter(const Job& job, int frame, int y, int x, u32* shared) {
  const edge::Span across = edge::span_of(job.x, x), down = edge::span_of(job.y, y);
  for (int done = 0; done < 4 * down.groups; done += edge::kRows) {
    for (int t = 0; t < edge::kThreads; ++t) edge::stage(job, frame, across, down, done, shared, t);
    for (int t = 0; t < edge::kThreads; ++t) edge::sum_along_x(job, across, down, done, shared, t);
  }
  for (int t = 0; t < edge::kThreads; ++t) edge::write_filtered<T>(job, frame, y, x, across, down, shared, t);
}

template <typename T>
static void nearest(const Job& job, int frame, int y, int x, u32*) {
  for (int t = 0; t < edge::kThreads; ++t) edge::write_nearest<T>(job, frame, y, x, t);
}

typedef void (*Block)(const Job&, int, int, int, u32*);

static Block block_of(const char* kernel) {
  const struct {
    const char* name;
    Block block;
  } known[] = {
      {"edge_filter_f32", filter<float>},
      {"edge_filter_f16", filter<edge::u16>},
      {"edge_nearest_f32", nearest<float>},
      {"edge_nearest_f16", nearest<edge::u16>},
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
        block(launch->job, frame, y, x, shared);
      }
  free(shared);
  return 0;
}

// In a case file job.source and the tables' addresses are offsets into the frames' memory and into the tables; the
// memory begins `shift` bytes into its allocation.
struct Case {
  Launch launch;
  long long shift, source_bytes, table_bytes, target_bytes;
};

int main(int count, char** arguments) {
  if (count != 3) return 2;
  FILE* cases = fopen(arguments[1], "rb");
  FILE* results = fopen(arguments[2], "wb");
  if (!cases || !results) return 2;
  Case item;
  while (fread(&item, sizeof item, 1, cases) == 1) {
    unsigned char* memory = static_cast<unsigned char*>(malloc(item.shift + item.source_bytes));
    unsigned char* table = static_cast<unsigned char*>(malloc(item.table_bytes));
    unsigned char* target = static_cast<unsigned char*>(malloc(item.target_bytes));
    memset(memory, 0xff, item.shift);
    if (fread(memory + item.shift, 1, item.source_bytes, cases) != static_cast<size_t>(item.source_bytes)) return 3;
    if (fread(table, 1, item.table_bytes, cases) != static_cast<size_t>(item.table_bytes)) return 3;
    memset(target, 0xff, item.target_bytes);  // NaN as float32 and as float16: what is not written shows
    readable_low = memory + item.shift;
    readable_high = readable_low + item.source_bytes;
    Job& job = item.launch.job;
    job.source += reinterpret_cast<edge::u64>(readable_low);
    job.target = reinterpret_cast<edge::u64>(target);
    for (edge::u64* at : {&job.x.first, &job.x.weights, &job.y.first, &job.y.weights})
      *at += reinterpret_cast<edge::u64>(table);
    if (edge_launch(&item.launch) != 0) return 4;
    fwrite(target, 1, item.target_bytes, results);
    free(memory);
    free(table);
    free(target);
  }
  fclose(cases);
  if (fclose(results) != 0) return 5;
  if (bad_reads) fprintf(stderr, "%ld reads outside of the frame\n", bad_reads);
  return bad_reads ? 6 : 0;
}
