// The table of the class avx512bf16: fields left alone keep the twin of the class below.
#include "kernels/avx512bf16/avx512bf16.h"

void avx512bf16_table(struct kernels *k)
{
    k->weight_bytes = avx512bf16_weight_bytes;
    k->weight_pack = avx512bf16_weight_pack;
    k->gemm = avx512bf16_gemm;
    k->gemm_dw = avx512bf16_gemm_dw;
    k->swiglu = avx512bf16_swiglu;
    k->swiglu_grad = avx512bf16_swiglu_grad;
    k->kv_write = avx512bf16_kv_write;
    k->attention = avx512bf16_attention;
    k->attention_grad = avx512bf16_attention_grad;
}
