// The table of the reference kernels: all fields.
#include "kernels/ref/ref.h"

void ref_table(struct kernels *k)
{
    *k = (struct kernels){
        .weight_bytes = ref_weight_bytes,
        .weight_pack = ref_weight_pack,
        .gemm = ref_gemm,
        .gemm_dw = ref_gemm_dw,
        .bias_grad = ref_bias_grad,
        .embed = ref_embed,
        .embed_grad = ref_embed_grad,
        .rmsnorm = ref_rmsnorm,
        .rmsnorm_grad = ref_rmsnorm_grad,
        .rope = ref_rope,
        .swiglu = ref_swiglu,
        .swiglu_grad = ref_swiglu_grad,
        .add = ref_add,
        .round_bf16 = ref_round_bf16,
        .kv_write = ref_kv_write,
        .attention = ref_attention,
        .attention_grad = ref_attention_grad,
        .logprob = ref_logprob,
        .logprob_grad = ref_logprob_grad,
        .sample = ref_sample,
        .probs = ref_probs,
        .sumsq = ref_sumsq,
        .adamw = ref_adamw,
        .fp8_quantize = ref_fp8_quantize,
        .fp8_dequantize = ref_fp8_dequantize,
        .to_bf16 = ref_to_bf16,
        .to_bf16_rows = ref_to_bf16_rows,
        .from_bf16 = ref_from_bf16,
    };
}
