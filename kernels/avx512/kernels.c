// The table of the class avx512: fields left alone keep the twin of the class below.
#include "kernels/avx512/avx512.h"

void avx512_table(struct kernels *k)
{
    k->weight_pack = avx512_weight_pack;
    k->gemm = avx512_gemm;
    k->gemm_dw = avx512_gemm_dw;
    k->bias_grad = avx512_bias_grad;
    k->embed = avx512_embed;
    k->embed_grad = avx512_embed_grad;
    k->rmsnorm = avx512_rmsnorm;
    k->rmsnorm_grad = avx512_rmsnorm_grad;
    k->rope = avx512_rope;
    k->swiglu = avx512_swiglu;
    k->swiglu_grad = avx512_swiglu_grad;
    k->add = avx512_add;
    k->round_bf16 = avx512_round_bf16;
    k->kv_write = avx512_kv_write;
    k->attention = avx512_attention;
    k->attention_grad = avx512_attention_grad;
    k->logprob = avx512_logprob;
    k->logprob_grad = avx512_logprob_grad;
    k->sample = avx512_sample;
    k->probs = avx512_probs;
    k->sumsq = avx512_sumsq;
    k->adamw = avx512_adamw;
    k->fp8_quantize = avx512_fp8_quantize;
    k->fp8_dequantize = avx512_fp8_dequantize;
    k->to_bf16 = avx512_to_bf16;
    k->to_bf16_rows = avx512_to_bf16_rows;
    k->from_bf16 = avx512_from_bf16;
}
