/* The published configurations of models that people plan for, as their config.json says (members
 * that decide nothing here are left out). */
#ifndef SHOAL_TESTS_UNIT_MODEL_PLAN_CONFIG_MODELS_H
#define SHOAL_TESTS_UNIT_MODEL_PLAN_CONFIG_MODELS_H

#define PLAN_CONFIG_DEEPSEEK_V3                                                                    \
    "{\"model_type\": \"deepseek_v3\", \"first_k_dense_replace\": 3, \"hidden_act\": \"silu\","    \
    " \"hidden_size\": 7168, \"intermediate_size\": 18432, \"kv_lora_rank\": 512,"                 \
    " \"max_position_embeddings\": 163840, \"moe_intermediate_size\": 2048,"                       \
    " \"moe_layer_freq\": 1, \"n_group\": 8, \"n_routed_experts\": 256, \"n_shared_experts\": 1,"  \
    " \"norm_topk_prob\": true, \"num_attention_heads\": 128, \"num_experts_per_tok\": 8,"         \
    " \"num_hidden_layers\": 61, \"num_key_value_heads\": 128, \"num_nextn_predict_layers\": 1,"   \
    " \"q_lora_rank\": 1536, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64,"                 \
    " \"quantization_config\": {\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\","            \
    " \"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06,"     \
    " \"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": 1.0,"    \
    " \"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},"   \
    " \"rope_theta\": 10000, \"routed_scaling_factor\": 2.5, \"scoring_func\": \"sigmoid\","       \
    " \"tie_word_embeddings\": false, \"topk_group\": 4, \"topk_method\": \"noaux_tc\","           \
    " \"torch_dtype\": \"bfloat16\", \"v_head_dim\": 128, \"vocab_size\": 129280}"

/* Models of Llama's shape: type, hidden, ffn, layers, heads, kv heads, vocabulary, context. */
#define PLAN_CONFIG_DENSE(type, hidden, ffn, layers, heads, kv_heads, vocab, context)              \
    "{\"model_type\": \"" type "\", \"hidden_act\": \"silu\", \"hidden_size\": " #hidden           \
    ", \"intermediate_size\": " #ffn ", \"max_position_embeddings\": " #context                    \
    ", \"num_attention_heads\": " #heads ", \"num_hidden_layers\": " #layers                       \
    ", \"num_key_value_heads\": " #kv_heads ", \"rms_norm_eps\": 1e-06, \"rope_theta\": 10000"     \
    ", \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"vocab_size\": " #vocab "}"

#define PLAN_CONFIG_DEEPSEEK_67B PLAN_CONFIG_DENSE("llama", 8192, 22016, 95, 64, 8, 102400, 4096)
#define PLAN_CONFIG_QWEN_7B PLAN_CONFIG_DENSE("qwen2", 3584, 18944, 28, 28, 4, 152064, 131072)
#define PLAN_CONFIG_QWEN_14B PLAN_CONFIG_DENSE("qwen2", 5120, 13824, 48, 40, 8, 152064, 131072)
#define PLAN_CONFIG_QWEN_32B PLAN_CONFIG_DENSE("qwen2", 5120, 27648, 64, 40, 8, 152064, 131072)
#define PLAN_CONFIG_LLAMA_8B PLAN_CONFIG_DENSE("llama", 4096, 14336, 32, 32, 8, 128256, 131072)

#endif
