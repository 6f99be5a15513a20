// Any bytes as a safetensors file: an error, or tensors that lie inside the bytes and can be read.
#include <stdio.h>
#include <stdlib.h>

#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors s;
    struct error err;
    if (safetensors_parse(data, n, "fuzz", &s, &err) != STATUS_OK)
        return 0;
    unsigned sum = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < s.n; i++) {
        const struct safetensor *t = &s.tensors[i];
        for (size_t k = 0; k < t->bytes; k++)
            sum += t->data[k];
        bytes += t->bytes;
        if (safetensors_find(&s, t->name) != t)
            abort();
    }
    if (bytes > n || (sum && !s.n))
        abort();
    safetensors_metadata(&s, "version");
    safetensors_close(&s);
    return 0;
}
