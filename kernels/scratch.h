// What device.scratch points to: the op table and the buffers of one device. Private to kernels/.
#ifndef KERNELS_SCRATCH_H
#define KERNELS_SCRATCH_H

#include "kernels/internal.h"

struct scratch_buf {
    void *p;
    size_t bytes;
};

struct scratch {
    struct kernels table;    // the device's ops
    struct kernels observed; // the same with an observer around each (observe.c)
    struct scratch_buf shared, *thread;
    int n_threads;
};

struct scratch *scratch_open(int n_threads);
void scratch_close(struct scratch *s); // NULL is fine

#endif
