/* The roofline's formulas, each against numbers worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/forecast.h"
#include "common/model/roofline.h"

/* In the cut that the rule takes. */
static status_t slice_of(const model_config_t *config, uint32_t tp, uint32_t slice,
                         plan_slice_t *out)
{
    plan_cut_t cut;
    TRY(plan_cut(config, &(plan_cut_t){tp, 0, 0, 0}, &cut));
    return plan_slice(config, &cut, slice, out);
}

static void assert_near(double value, double wanted)
{
    if (!(fabs(value - wanted) <= 1e-9 * fabs(wanted)))
        fail_msg("%.12g is not %.12g", value, wanted);
}

/* 256 experts of which a token uses 8: two tokens use 256 * (1 - (248/256)^2) = 15.75 on average,
 * 64 tokens 256 * (1 - (31/32)^64) = 222.4. */
static void test_a_batch_reads_the_experts_that_some_token_uses(void **state)
{
    (void)state;
    assert_near(roofline_experts_touched(256, 8, 1), 8);
    assert_near(roofline_experts_touched(256, 8, 2), 15.75);
    assert_near(floor(10 * roofline_experts_touched(256, 8, 64)), 2224);
    assert_near(roofline_experts_touched(8, 8, 1), 8);
    assert_true(roofline_experts_touched(0, 0, 5) == 0);
}

/* Grouped: 2 key/value heads of 64, K and V, 2 bytes: 512 bytes a key, all keys or the window.
 * Latent: (512 + 64) * 2 = 1,152 bytes a key; with an indexer of 128 wide that keeps 2,048, those
 * alone and 256 bytes of each key. Compressed: 128 keys of the window and 8,192/128 entries of 512
 * values; with an indexer 8,192/4 = 2,048 entries are looked at, 512 chosen. */
static void test_each_kind_of_cache_is_read_as_far_as_it_is_seen(void **state)
{
    (void)state;
    model_config_t *config = MEM_NEW(model_config_t);
    plan_slice_t slice = {.heads = {0, 8}, .kv_heads = {0, 2}};
    config->head_dim = 64;
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 1000, 2), 512 * 1000.0);
    config->layers[0].window = 128;
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 1000, 2), 512 * 128.0);
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 100, 4), 1024 * 100.0);

    config->layers[0] = (model_layer_t){.attention = MODEL_ATTENTION_LATENT};
    config->latent = (model_latent_t){.kv_rank = 512, .rope_dim = 64};
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 8192, 2), 1152 * 8192.0);
    config->layers[0].indexed = true;
    config->index = (model_index_t){.n_heads = 64, .head_dim = 128, .top_k = 2048};
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 8192, 2), 1152 * 2048.0 + 256 * 8192.0);

    config->head_dim = 512;
    config->layers[0] = (model_layer_t){.attention = MODEL_ATTENTION_COMPRESSED, .window = 128,
                                        .rate = 128};
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 8192, 2), 1024.0 * (128 + 64));
    config->layers[0].rate = 4;
    config->layers[0].indexed = true;
    config->index.top_k = 512;
    assert_near(roofline_kv_read_bytes(config, &slice, 0, 8192, 2),
                1024.0 * (128 + 512) + 256 * 2048.0);
    slice.heads.count = 0;
    assert_true(roofline_kv_read_bytes(config, &slice, 0, 8192, 2) == 0);
    free(config);
}

/* Scores and values: grouped 4 flops a head, key and value of a head: 4*8*64 = 2,048 a key. Latent,
 * absorbed: keys of 576 and values of 512: 2*8*(576 + 512) = 17,408 a key. */
static void test_attention_costs_by_the_keys_that_are_seen(void **state)
{
    (void)state;
    model_config_t *config = MEM_NEW(model_config_t);
    plan_slice_t slice = {.heads = {0, 8}, .kv_heads = {0, 2}};
    config->head_dim = 64;
    assert_near(roofline_attention_flops(config, &slice, 0, 1000), 2048 * 1000.0);
    config->layers[0].window = 10;
    assert_near(roofline_attention_flops(config, &slice, 0, 1000), 2048 * 10.0);
    config->layers[0] = (model_layer_t){.attention = MODEL_ATTENTION_LATENT};
    config->latent = (model_latent_t){.kv_rank = 512, .rope_dim = 64};
    assert_near(roofline_attention_flops(config, &slice, 0, 100), 17408 * 100.0);
    config->layers[0].indexed = true; /* 64 index heads of 128: 16,384 flops a key more */
    config->index = (model_index_t){.n_heads = 64, .head_dim = 128, .top_k = 30};
    assert_near(roofline_attention_flops(config, &slice, 0, 100), 17408 * 30.0 + 16384 * 100.0);
    free(config);
}

/* One dense layer and one with 8 experts, 2 used; 16 heads, 4 for keys and values. Bytes are two a
 * value. On slice 0 of tp 2 of the only stage, 8 heads, 2 of 4 kv heads, 256 of 512 of the FFN;
 * experts: both slices share each, half of its 256; half of the shared one; half of a vocabulary of
 * 2,048. */
static plan_sizes_t *small_sizes(void)
{
    plan_sizes_t *sizes = MEM_NEW(plan_sizes_t);
    *sizes = (plan_sizes_t){
        .embedding_values = 2048 * 100, .embedding_bytes = 2 * 2048 * 100,
        .head_values = 2048 * 100, .head_bytes = 2 * 2048 * 100,
        .norm_values = 200, .norm_bytes = 400, .q_values = 1000, .q_bytes = 2000,
        .kv_values = 500, .kv_bytes = 1000, .output_values = 1000, .output_bytes = 2000,
        .ffn_values = 6000, .ffn_bytes = 12000, .expert_values = 16000, .expert_bytes = 32000,
        .shared_values = 2000, .shared_bytes = 4000,
    };
    model_config_t *config = &sizes->config;
    config->n_layers = 2;
    config->hidden = 100;
    config->n_heads = 16;
    config->n_kv_heads = 4;
    config->head_dim = 8;
    config->ffn = 512;
    config->vocab = 2048;
    config->context_train = 4096;
    config->experts = (model_experts_t){.n = 8, .n_used = 2, .ffn = 256, .shared_ffn = 256};
    config->layers[1].ffn = MODEL_FFN_EXPERTS;
    return sizes;
}

/* Three rows that decode at 10 keys. A layer's attention: 200 + 500 + 250 + 500 = 1,450 values.
 * Dense: 3,000. Experts: a row multiplies 2/8 of 8,000 = 2,000 and 1,000 of the shared one. Head:
 * half of 2,048 rows. Values a row: 2*1,450 + 3,000 + 3,000 + 102,400 = 111,300; flops 2*3*111,300,
 * and scores 3 * 2 layers * 4*8*8*10 = 15,360.
 * Bytes: 2*(2,900 + 3,000 + 1,000 + 102,400) = 218,600; experts: 8*(1 - (6/8)^3) = 4.625 of 8 are
 * read: 16,000 * 4.625/8 = 9,250; three embedded rows 600. KV: 3 * 2 layers * 10 keys * 2*2*8*2 =
 * 3,840. */
static void test_a_rank_multiplies_and_reads_its_part(void **state)
{
    (void)state;
    plan_sizes_t *sizes = small_sizes();
    plan_shape_t shape = {.tp = 2, .stages = 1, .context_max = 64};
    plan_run_t layers[1] = {{0, 2}};
    plan_slice_t slice;
    roofline_step_t step = {.rows = 3, .sequences = 3, .context = 10, .logit_rows = 3};
    roofline_work_t work;
    assert_int_equal(slice_of(&sizes->config, 2, 0, &slice), STATUS_OK);
    roofline_work(sizes, &shape, layers, 0, 0, &slice, &step, &work);
    assert_near(work.flops, 2 * 3 * 111300.0 + 15360);
    assert_near(work.weight_bytes, 218600 + 9250 + 600);
    assert_near(work.kv_bytes, 3840);
    /* In prefill the cache is read once for all rows of the sequence, and the head does not run. */
    step = (roofline_step_t){.rows = 3, .sequences = 1, .context = 10};
    roofline_work(sizes, &shape, layers, 0, 0, &slice, &step, &work);
    assert_near(work.kv_bytes, 1280);
    assert_near(work.flops, 2 * 3 * 8900.0 + 15360);
    /* A head of one of two stages, and one that both share: a block of its two for each. */
    plan_run_t halves[2] = {{0, 1}, {1, 1}};
    double flops[2];
    shape = (plan_shape_t){.tp = 1, .stages = 2, .context_max = 64};
    step.logit_rows = 3;
    assert_int_equal(slice_of(&sizes->config, 1, 0, &slice), STATUS_OK);
    for (int shared = 0; shared < 2; shared++) {
        shape.shared_head = shared != 0;
        roofline_work(sizes, &shape, halves, 0, 0, &slice, &step, &work);
        flops[shared] = work.flops;
    }
    assert_near(flops[1] - flops[0], 2 * 3 * 102400.0);
    free(sizes);
}

/* Of 16 heads of 256 tp 2 takes two nodes of the tree, one each; tp 3 takes leaves 0-4, 5-9 and 10-15,
 * which are covered by the nodes 0-3 4 | 5 6-7 8-9 | 10-11 12-15. An F32 value of 100 a row and
 * node; where there are experts exact sums of 8 bytes, once. */
static void test_partial_sums_are_counted_by_the_nodes_of_the_tree(void **state)
{
    (void)state;
    static const uint32_t nodes_of_3[] = {2, 3, 2};
    plan_sizes_t *sizes = small_sizes();
    plan_slice_t slice;
    sizes->config.head_dim = 256;
    for (uint32_t s = 0; s < 3; s++) {
        assert_int_equal(slice_of(&sizes->config, 3, s, &slice), STATUS_OK);
        assert_near(roofline_partial_bytes_attention(&sizes->config, &slice, 5),
                    4.0 * 5 * 100 * nodes_of_3[s]);
    }
    assert_int_equal(slice_of(&sizes->config, 2, 1, &slice), STATUS_OK);
    assert_near(roofline_partial_bytes_attention(&sizes->config, &slice, 5), 2000);
    assert_near(roofline_partial_bytes_ffn(&sizes->config, &slice, 0, 5), 2000);
    assert_near(roofline_partial_bytes_ffn(&sizes->config, &slice, 1, 5), 4000);
    free(sizes);
}

/* Devices of 1 GB/s that multiply without end, links of 1 MB/s and 1 ms.
 * tp 2 in one host, one row: attention twice and the FFN give parts of 400 bytes, the experts' 800:
 * 400 + 400 + 400 + 800 = 2,000 bytes, 2 ms, and four times 1 ms; logits of 1,024 tokens 4,096
 * bytes, 4.096 ms + 1 ms. Between hosts with links of 0.5 MB/s and 2 ms: twice that.
 * Two stages of tp 1: no exchange; 400 bytes pass on: 0.4 ms + 1 ms. In one host they share the head, so
 * its 400 bytes go back and logits of 1,024 tokens come: 4.496 ms + 1 ms. */
static void test_links_carry_exchanges_logits_and_rows(void **state)
{
    (void)state;
#define DEVICE(n)                                                                                  \
    "\"devices\": [{\"memory_gib\": 1, \"bandwidth_gb_s\": 1, \"tflops\": {\"f32\": 1000000},"     \
    " \"link_gb_s\": 0.001, \"link_us\": 1000, \"count\": " n "}]"
    static const char together[] = "{\"hosts\": [{" DEVICE("2") "}]}";
    static const char apart[] = "{\"hosts\": [{\"count\": 2, \"link_gb_s\": 0.0005, \"link_us\": "
                                "2000, " DEVICE("1") "}]}";
    plan_sizes_t *sizes = small_sizes();
    forecast_t *f = MEM_NEW(forecast_t);
    forecast_question_t question = {.sizes = sizes, .weights = QTYPE_F32, .tp = 2, .stages = 1,
                                    .context = 64, .prompt = 64, .batch_max = 4};
    hosts_file_t hosts;
    for (int i = 0; i < 2; i++) {
        const char *text = i == 0 ? together : apart;
        assert_int_equal(hosts_file_parse("h", text, strlen(text), &hosts), STATUS_OK);
        question.tp = 2;
        question.stages = 1;
        assert_int_equal(forecast_make(&question, &hosts, f), STATUS_OK);
        assert_true(f->fits);
        assert_near(f->one.link_s, (i + 1) * (2.0e-3 + 4e-3 + 4.096e-3 + 1e-3));
        question.tp = 1;
        question.stages = 2;
        assert_int_equal(forecast_make(&question, &hosts, f), STATUS_OK);
        /* Both stages' memory and the one pass; behind the second stage there is the head alone. */
        assert_true(f->shape.shared_head == (i == 0));
        double memory = f->one.all_s - (i == 0 ? 1.4e-3 + 5.496e-3 : 2 * 1.4e-3);
        assert_true(memory > 0 && memory < 1e-3);
        hosts_file_release(&hosts);
    }
    free(f);
    free(sizes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_batch_reads_the_experts_that_some_token_uses),
        cmocka_unit_test(test_each_kind_of_cache_is_read_as_far_as_it_is_seen),
        cmocka_unit_test(test_attention_costs_by_the_keys_that_are_seen),
        cmocka_unit_test(test_a_rank_multiplies_and_reads_its_part),
        cmocka_unit_test(test_partial_sums_are_counted_by_the_nodes_of_the_tree),
        cmocka_unit_test(test_links_carry_exchanges_logits_and_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
