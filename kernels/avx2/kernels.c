// The table of the class avx2: fields left alone keep the twin of the class below.
#include "kernels/avx2/avx2.h"

void avx2_table(struct kernels *k)
{
    k->gemm = avx2_gemm;
    k->gemm_dw = avx2_gemm_dw;
}
