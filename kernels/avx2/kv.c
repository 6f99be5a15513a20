// The key/value cache: lanes/kv_tmpl.c on AVX2.
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"

#include "kernels/lanes/kv_tmpl.c"
