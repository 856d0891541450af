/* The sizes of SmolLM2-135M in Q4_1, written out, so that planner tests need no file. The test of
 * the real file compares plan_sizes() with them. */
#ifndef SHOAL_TESTS_UNIT_MODEL_PLAN_MODELS_H
#define SHOAL_TESTS_UNIT_MODEL_PLAN_MODELS_H

#include "common/model/plan.h"

static inline plan_sizes_t plan_smollm2(void)
{
    return (plan_sizes_t){
        .config = {.architecture = "llama", .n_layers = 30, .hidden = 576, .n_heads = 9,
                   .n_kv_heads = 3, .head_dim = 64, .ffn = 1536, .vocab = 49152,
                   .context_train = 8192,
                   .norm_eps = 1e-5f, .attention_scale = 0.125f, .tied_embeddings = true},
        .file_bytes = 98362432,
        .embedding_values = 49152 * 576, .embedding_bytes = 49152 * 612, /* Q8_0: 18 x 34 */
        .head_values = 49152 * 576 + 576, .head_bytes = 49152 * 612 + 2304,
        .norm_values = 2 * 576, .norm_bytes = 2 * 2304,
        .q_values = 576 * 576, .q_bytes = 576 * 360, /* Q4_1: 18 x 20 */
        .kv_values = 2 * 192 * 576, .kv_bytes = 2 * 192 * 360,
        .output_values = 576 * 576, .output_bytes = 576 * 360,
        .ffn_values = 3 * 1536 * 576, .ffn_bytes = 2 * 1536 * 360 + 576 * 960,
    };
}

#endif
