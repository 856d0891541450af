/* Small configurations, one for each kind of layer, from which the mutator starts. */
#ifndef SHOAL_TESTS_FUZZ_LOAD_CONFIGS_H
#define SHOAL_TESTS_FUZZ_LOAD_CONFIGS_H

#define ENDS                                                                                       \
    "\"bos_token_id\":0,\"eos_token_id\":1,\"max_position_embeddings\":256,\"vocab_size\":40,"     \
    "\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,\"torch_dtype\":\"bfloat16\","                  \
    "\"num_hidden_layers\":2,"
#define SILU "\"hidden_act\":\"silu\","
#define YARN                                                                                       \
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"beta_fast\":32,\"beta_slow\":1,"         \
    "\"original_max_position_embeddings\":16}"
#define HEADS                                                                                      \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":8,\"hidden_size\":32,"       \
    "\"intermediate_size\":48,"
#define LATENT                                                                                     \
    "\"hidden_size\":32,\"intermediate_size\":48,\"moe_intermediate_size\":16,"                    \
    "\"num_attention_heads\":3,\"num_key_value_heads\":3,\"kv_lora_rank\":16,\"q_lora_rank\":24,"  \
    "\"qk_nope_head_dim\":8,\"qk_rope_head_dim\":4,\"v_head_dim\":8,\"n_routed_experts\":4,"       \
    "\"n_shared_experts\":1,\"num_experts_per_tok\":2,\"n_group\":2,\"topk_group\":1,"             \
    "\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,\"first_k_dense_replace\":1,"           \
    "\"topk_method\":\"noaux_tc\",\"scoring_func\":\"sigmoid\","

static const char *const load_configs[] = {
    "{" ENDS SILU HEADS "\"model_type\":\"llama\",\"tie_word_embeddings\":true,\"rope_scaling\":"
    "{\"rope_type\":\"llama3\",\"factor\":8.0,\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
    "\"original_max_position_embeddings\":16}}",
    "{" ENDS SILU HEADS "\"model_type\":\"mistral\",\"sliding_window\":5}",
    "{" ENDS SILU HEADS "\"model_type\":\"qwen2\"," YARN "}",
    "{" ENDS SILU HEADS "\"model_type\":\"qwen3_moe\",\"num_experts\":5,\"num_experts_per_tok\":2,"
    "\"moe_intermediate_size\":24,\"norm_topk_prob\":true,\"mlp_only_layers\":[1]}",
    "{" ENDS SILU HEADS "\"model_type\":\"mixtral\",\"num_local_experts\":3,"
    "\"num_experts_per_tok\":2,\"sliding_window\":null}",
    "{" ENDS HEADS "\"model_type\":\"gemma2\",\"hidden_activation\":\"gelu_pytorch_tanh\","
    "\"query_pre_attn_scalar\":8,\"sliding_window\":5,\"attn_logit_softcapping\":8.0,"
    "\"final_logit_softcapping\":12.0,\"tie_word_embeddings\":true}",
    "{" ENDS HEADS "\"model_type\":\"gemma3_text\",\"hidden_activation\":\"gelu_pytorch_tanh\","
    "\"query_pre_attn_scalar\":8,\"sliding_window\":5,\"sliding_window_pattern\":2,"
    "\"rope_local_base_freq\":10000.0,\"tie_word_embeddings\":true}",
    "{" ENDS SILU HEADS "\"model_type\":\"gpt_oss\",\"attention_bias\":true,"
    "\"num_local_experts\":4,\"num_experts_per_tok\":2,\"sliding_window\":5,\"swiglu_limit\":1.5,"
    "\"layer_types\":[\"sliding_attention\",\"full_attention\"]," YARN "}",
    "{" ENDS SILU LATENT "\"model_type\":\"deepseek_v3\"," YARN "}",
    "{" ENDS SILU LATENT "\"model_type\":\"deepseek_v32\",\"index_topk\":6,\"index_head_dim\":8,"
    "\"index_n_heads\":4," YARN "}",
    "{" ENDS SILU "\"model_type\":\"deepseek_v4\",\"hidden_size\":32,\"moe_intermediate_size\":16,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":1,\"head_dim\":16,\"qk_rope_head_dim\":4,"
    "\"q_lora_rank\":16,\"num_experts_per_tok\":2,\"n_routed_experts\":4,\"n_shared_experts\":1,"
    "\"routed_scaling_factor\":1.5,\"scoring_func\":\"sqrtsoftplus\",\"norm_topk_prob\":true,"
    "\"compress_rope_theta\":160000.0,\"hc_mult\":4,\"hc_sinkhorn_iters\":4,\"hc_eps\":1e-06,"
    "\"num_hash_layers\":1,\"swiglu_limit\":1.5,\"sliding_window\":5,\"o_groups\":2,"
    "\"o_lora_rank\":8,\"index_n_heads\":2,\"index_head_dim\":8,\"index_topk\":2,"
    "\"compress_ratios\":[4,128],\"compress_rates\":{\"compressed_sparse_attention\":4,"
    "\"heavily_compressed_attention\":4}," YARN "}",
};

#endif
