// A device: where arrays live and which kernels run on them. CPU now; CUDA takes the same interface. Model
// code allocates through the device and calls its op table; it never asks where it runs.
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "kernels/dtype.h"

struct kernels;
struct observer;

// Kernel classes of the CPU in ascending order. Within one class every op has one fixed order of operations
// for every shape (contract 3); ISA_REF, ISA_AVX2 and ISA_AVX512 compute the same bits, later classes have
// their own.
enum isa { ISA_REF, ISA_AVX2, ISA_AVX512, ISA_AVX512BF16, ISA_AMX };

struct device {
    const struct kernels *k; // the op table
    struct pool *pool;       // owned
    enum isa isa;
    char name[64];         // "cpu:avx512, 2 threads"
    char numerics_id[128]; // ISA class + kernel constants + build: equal ids compute equal bits
    void *scratch;         // private to the kernels (per-thread packing buffers)
    struct device **solo;  // [pool_threads]: device_solo; NULL in a solo device itself
    // observe.h
    const struct observer *observer; // NULL = nobody watches
    int32_t mark_layer;              // where the model is
    const char *mark_block;
};

// isa_name: "auto" | "ref" | "avx2" | "avx512" | "avx512bf16" | "amx": the highest class to use; one the
// processor lacks is an error that says so ("auto" takes the best). n_threads 0 = all cores this process may
// run on.
enum status device_open(const char *kind, const char *isa_name, int n_threads, struct device **ret,
                        struct error *err) OOZE_MUST_USE;
void device_close(struct device *d);
// Inside a task of d's pool: the device of that one thread, through which the task calls ops. They run within the task. Owned by d.
struct device *device_solo(struct device *d, int thread);
enum isa device_best_isa(void);
const char *isa_name(enum isa i);

// Zeroed memory of the device; NULL when out of memory.
void *device_alloc(struct device *d, size_t bytes);
void device_free(struct device *d, void *p);

#endif
