/* How slices share experts and attention: what may be asked for, what the rule takes when nothing
 * is, and that every part has one owner whatever it is. That no cut changes a number is shown by
 * the engine's test (family_cut_test.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/forecast.h"
#include "tests/unit/model/plan_models.h"

#define DIGEST "sha256:aa"

enum { EXPERTS_MAX = 10 };

static plan_sizes_t with_experts(uint32_t n, uint32_t used, uint32_t ffn)
{
    plan_sizes_t sizes = plan_smollm2();
    sizes.config.experts = (model_experts_t){.n = n, .n_used = used, .ffn = ffn};
    for (uint32_t i = 0; i < sizes.config.n_layers; i++)
        sizes.config.layers[i].ffn = MODEL_FFN_EXPERTS;
    sizes.expert_values = 3ull * n * ffn * sizes.config.hidden;
    sizes.expert_bytes = 2 * sizes.expert_values;
    return sizes;
}

static void check_run(plan_run_t run, uint32_t first, uint32_t count)
{
    assert_int_equal(run.first, first);
    assert_int_equal(run.count, count);
}

static void test_four_slices_share_eight_experts_in_one_two_or_four_groups(void **state)
{
    (void)state;
    static const struct {
        uint32_t groups, slice, first, count, ffn_first, ffn;
    } rows[] = {
        {1, 0, 0, 8, 0, 64},  {1, 3, 0, 8, 192, 64}, {2, 0, 0, 4, 0, 128}, {2, 1, 0, 4, 128, 128},
        {2, 2, 4, 4, 0, 128}, {2, 3, 4, 4, 128, 128}, {4, 0, 0, 2, 0, 256}, {4, 3, 6, 2, 0, 256},
    };
    plan_sizes_t sizes = with_experts(8, 2, 256);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        plan_cut_t cut;
        plan_slice_t slice;
        assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){4, rows[i].groups, 0, 0}, &cut), STATUS_OK);
        assert_int_equal(cut.expert_groups, rows[i].groups);
        assert_int_equal(plan_slice(&sizes.config, &cut, rows[i].slice, &slice), STATUS_OK);
        check_run(slice.experts, rows[i].first, rows[i].count);
        check_run(slice.expert_ffn, rows[i].ffn_first, rows[i].ffn);
    }
}

/* Also where experts are fewer than groups and leaves are empty. */
static void test_every_part_has_one_owner_in_every_cut(void **state)
{
    (void)state;
    plan_sizes_t sizes = with_experts(7, 2, 21);
    uint32_t n_cuts = 0;
    for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++)
        for (uint32_t groups = 1; groups <= tp; groups++)
            for (uint32_t holders = 1; holders <= tp; holders++) {
                uint32_t owners[7][21] = {0}, heads[9] = {0}, next_leaf = 0, with_heads = 0;
                plan_cut_t cut;
                const plan_cut_t wanted = {tp, groups, holders, 0};
                if (plan_cut(&sizes.config, &wanted, &cut) != STATUS_OK)
                    continue;
                n_cuts++;
                for (uint32_t s = 0; s < tp; s++) {
                    plan_slice_t slice;
                    assert_int_equal(plan_slice(&sizes.config, &cut, s, &slice), STATUS_OK);
                    for (uint32_t e = 0; e < slice.experts.count; e++)
                        for (uint32_t i = 0; i < slice.expert_ffn.count; i++)
                            owners[slice.experts.first + e][slice.expert_ffn.first + i]++;
                    for (uint32_t h = 0; h < slice.heads.count; h++)
                        heads[slice.heads.first + h]++;
                    /* The kernels add runs in the order of slices. */
                    assert_int_equal(slice.head_leaves.first, next_leaf);
                    next_leaf += slice.head_leaves.count;
                    with_heads += slice.heads.count > 0;
                }
                assert_true(with_heads <= holders);
                for (uint32_t h = 0; h < 9; h++)
                    assert_int_equal(heads[h], 1);
                for (uint32_t e = 0; e < 7; e++)
                    for (uint32_t i = 0; i < 21; i++)
                        assert_int_equal(owners[e][i], 1);
            }
    assert_int_equal(n_cuts,
                     1 + 4 + 6 + 12 + 5 + 18 + 7 + 24 + 18 + 20 + 11 + 48 + 13 + 28 + 30 + 48);
}

/* The rule's cost, counted over all choices of a token. */
static double cost_of(const model_config_t *config, uint32_t tp, uint32_t groups)
{
    const model_experts_t *experts = &config->experts;
    plan_cut_t cut = {tp, groups, tp, 1};
    uint32_t masks[PLAN_TP_MAX], most_experts = 0, widest = 0, n_choices = 0, sum = 0;
    for (uint32_t s = 0; s < tp; s++) {
        plan_slice_t slice;
        assert_int_equal(plan_slice(config, &cut, s, &slice), STATUS_OK);
        masks[s] = ((1u << slice.experts.count) - 1) << slice.experts.first;
        most_experts = slice.experts.count > most_experts ? slice.experts.count : most_experts;
        widest = slice.expert_ffn.count > widest ? slice.expert_ffn.count : widest;
    }
    for (uint32_t choice = 0; choice < 1u << experts->n; choice++) {
        uint32_t most = 0;
        if ((uint32_t)__builtin_popcount(choice) != experts->n_used)
            continue;
        for (uint32_t s = 0; s < tp; s++) {
            uint32_t here = (uint32_t)__builtin_popcount(choice & masks[s]);
            most = here > most ? here : most;
        }
        n_choices++;
        sum += most;
    }
    return ((double)sum / n_choices / experts->n_used + (double)most_experts / experts->n) *
           widest / experts->ffn;
}

static void test_the_rule_takes_the_groups_whose_busiest_slice_has_least_to_do(void **state)
{
    (void)state;
    static const uint32_t widths[] = {256, 96, 40, 21};
    uint32_t inside = 0, whole = 0, both = 0;
    for (uint32_t n = 2; n <= EXPERTS_MAX; n++)
        for (uint32_t used = 1; used <= 4 && used <= n; used++)
            for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++) {
                plan_sizes_t sizes = with_experts(n, used, widths[n % 4]);
                uint32_t best = 0;
                double least = 0;
                plan_cut_t cut;
                for (uint32_t groups = 1; groups <= tp; groups++) {
                    if (tp % groups != 0 || tp / groups > PLAN_EXPERT_LEAVES)
                        continue;
                    double cost = cost_of(&sizes.config, tp, groups);
                    if (best == 0 || cost < least - 1e-9) {
                        best = groups;
                        least = cost;
                    }
                }
                assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){tp, 0, 0, 0}, &cut),
                                 STATUS_OK);
                assert_int_equal(cut.expert_groups, best);
                inside += tp > 1 && best == 1;
                whole += tp > 1 && best == tp;
                both += best > 1 && best < tp;
            }
    assert_true(inside > 0 && whole > 0 && both > 0);
}

/* DeepSeek V3: 8 of 256; Mixtral: 2 of 8; Qwen3-MoE: 8 of 128; 6 of 64. 4 leaves on 3 slices leave
 * one of them half of each expert, which 22 of 64 whole ones beat and 3 of 8 do not. */
static void test_the_rule_for_models_that_people_have(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, used, ffn, tp, groups;
    } rows[] = {
        {256, 8, 2048, 2, 1}, {256, 8, 2048, 4, 1}, {256, 8, 2048, 8, 2}, {256, 8, 2048, 16, 4},
        {256, 8, 2048, 3, 3}, {8, 2, 14336, 2, 1},  {8, 2, 14336, 3, 1},  {8, 2, 14336, 4, 1},
        {128, 8, 768, 6, 3},  {64, 6, 1408, 3, 3},  {64, 6, 1408, 5, 5},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        plan_sizes_t sizes = with_experts(rows[i].n, rows[i].used, rows[i].ffn);
        plan_cut_t cut;
        assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){rows[i].tp, 0, 0, 0}, &cut),
                         STATUS_OK);
        assert_int_equal(cut.expert_groups, rows[i].groups);
        assert_int_equal(cut.attention_slices, rows[i].tp);
    }
}

static void test_cuts_that_cannot_be_are_refused_with_what_could(void **state)
{
    (void)state;
    plan_sizes_t sizes = with_experts(8, 2, 256), dense = plan_smollm2();
    plan_cut_t cut = {7, 7, 7, 7};
    assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){4, 3, 0, 0}, &cut), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "3 groups of experts on 4 slices; a divisor of 4"));
    assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){8, 1, 0, 0}, &cut), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "at most 4 slices"));
    assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){4, 0, 5, 0}, &cut), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "attention on 5 of 4 slices"));
    assert_int_equal(plan_cut(&dense.config, &(plan_cut_t){2, 1, 0, 0}, &cut), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "no experts"));
    assert_int_equal(plan_cut(&dense.config, &(plan_cut_t){17, 0, 0, 0}, &cut), STATUS_INVALID);
    assert_int_equal(cut.tp, 7); /* untouched */
    assert_int_equal(plan_cut(&dense.config, &(plan_cut_t){2, 0, 0, 0}, &cut), STATUS_OK);
    assert_int_equal(cut.expert_groups, 0);
}

/* Of 4 slices 0 and 2 have attention: a KV cache each of half the heads, or both of the latent. */
static void test_attention_on_some_slices_leaves_the_others_without_its_cache(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = {.tp = 4, .stages = 1, .context_max = 64, .attention_slices = 2};
    static const uint32_t firsts[] = {0, 4, 4, 9}, counts[] = {4, 0, 5, 0};
    static const uint64_t latent_bytes[] = {1, 0, 1, 0};
    plan_need_t need;
    for (uint32_t s = 0; s < 4; s++) {
        plan_cut_t cut;
        plan_slice_t slice;
        assert_int_equal(plan_cut(&sizes.config, &(plan_cut_t){4, 0, 2, 0}, &cut), STATUS_OK);
        assert_int_equal(plan_slice(&sizes.config, &cut, s, &slice), STATUS_OK);
        check_run(slice.heads, firsts[s], counts[s]);
        assert_int_equal(plan_need(&sizes, &shape, 0, s, &need), STATUS_OK);
        assert_int_equal(need.kv_per_token, counts[s] ? 2 * 30 * 2 * 64 * 2 : 0);
    }
    sizes.config.latent = (model_latent_t){.kv_rank = 64, .rope_dim = 16};
    for (uint32_t i = 0; i < sizes.config.n_layers; i++)
        sizes.config.layers[i].attention = MODEL_ATTENTION_LATENT;
    for (uint32_t s = 0; s < 4; s++) {
        assert_int_equal(plan_need(&sizes, &shape, 0, s, &need), STATUS_OK);
        assert_int_equal(need.kv_per_token, latent_bytes[s] * 30 * 80 * 2);
    }
}

/* Each replica has every leaf once, in the order of its slices, and every slice is of one replica. */
static void test_every_replica_of_attention_has_all_its_leaves(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    uint32_t n_cuts = 0;
    for (uint32_t tp = 1; tp <= PLAN_TP_MAX; tp++)
        for (uint32_t holders = 1; holders <= tp; holders++)
            for (uint32_t replicas = 1; replicas <= holders; replicas++) {
                const plan_cut_t wanted = {tp, 0, holders, replicas};
                uint32_t next_slice = 0, with_heads = 0;
                plan_cut_t cut;
                status_t status = plan_cut(&sizes.config, &wanted, &cut);
                assert_int_equal(status, holders % replicas ? STATUS_INVALID : STATUS_OK);
                if (status != STATUS_OK)
                    continue;
                n_cuts++;
                for (uint32_t r = 0; r < replicas; r++) {
                    plan_run_t slices = plan_attention_slices(&cut, r);
                    uint32_t next_leaf = 0;
                    check_run(slices, next_slice, slices.count);
                    next_slice += slices.count;
                    for (uint32_t s = slices.first; s < next_slice; s++) {
                        plan_run_t run = plan_attention_run(&cut, 9, s);
                        check_run(run, next_leaf, run.count);
                        next_leaf += run.count;
                        with_heads += run.count > 0;
                    }
                    assert_int_equal(next_leaf, 9);
                }
                assert_int_equal(next_slice, tp);
                assert_true(with_heads <= holders);
            }
    assert_int_equal(n_cuts, 364); /* divisors of 1 … tp, over all tp */
}

/* Where each slice with attention keeps the whole cache, replicas hold as many times more tokens; and
 * one sequence each is enough of them. */
static void test_replicas_of_attention_have_room_for_their_own_sequences(void **state)
{
    (void)state;
    plan_sizes_t sizes = plan_smollm2();
    plan_shape_t shape = {.tp = 4, .stages = 1, .context_max = 64, .kv_tokens_max = 1 << 20};
    uint64_t memory[4], tokens = 0, once = 0;
    plan_need_t need;
    sizes.config.latent = (model_latent_t){.kv_rank = 64, .rope_dim = 16};
    for (uint32_t i = 0; i < sizes.config.n_layers; i++)
        sizes.config.layers[i].attention = MODEL_ATTENTION_LATENT;
    for (uint32_t replicas = 1; replicas <= 4; replicas *= 2) {
        shape.attention_replicas = replicas;
        for (uint32_t s = 0; s < 4; s++) {
            assert_int_equal(plan_need(&sizes, &shape, 0, s, &need), STATUS_OK);
            assert_int_equal(need.kv_per_token, 30 * 80 * 2);
            memory[s] = need.fixed + 1000 * need.kv_per_token;
        }
        assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_OK);
        once = replicas == 1 ? tokens : once;
        assert_int_equal(tokens, replicas * once);
        assert_int_equal(plan_kv_bytes(&need, tokens), once * need.kv_per_token);
        assert_int_equal(plan_kv_tokens_needed(&sizes.config, &shape),
                         (replicas > 2 ? replicas : 2) * 64);
        for (uint32_t s = 0; s < 4; s++)
            memory[s] = need.fixed + (replicas > 1 ? 64 : 128) * need.kv_per_token - 1;
        assert_int_equal(plan_fit(&sizes, &shape, memory, &tokens), STATUS_REFUSED);
    }
    shape.attention_slices = 3;
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "4 replicas of attention on 3 slices; a divisor of 3"));
}

static void test_cuts_to_try_are_the_rules_then_the_smallest_then_fewer_copies(void **state)
{
    (void)state;
    plan_sizes_t sizes = with_experts(8, 2, 256); /* on 3: the rule says 1, bytes say 3 */
    plan_shape_t shape = {.tp = 3, .stages = 1, .context_max = 64};
    plan_cut_t cuts[PLAN_CUTS_MAX];
    uint32_t n = 0;
    assert_int_equal(plan_cuts(&sizes.config, &shape, cuts, &n), STATUS_OK);
    assert_int_equal(n, 2);
    assert_int_equal(cuts[0].expert_groups, 1);
    assert_int_equal(cuts[1].expert_groups, 3);
    assert_int_equal(cuts[1].attention_slices, 3);
    shape.expert_groups = 3;
    assert_int_equal(plan_cuts(&sizes.config, &shape, cuts, &n), STATUS_OK);
    assert_int_equal(n, 1);
    assert_int_equal(cuts[0].expert_groups, 3);
    for (uint32_t i = 0; i < sizes.config.n_layers; i++)
        sizes.config.layers[i].attention = MODEL_ATTENTION_LATENT;
    shape = (plan_shape_t){.tp = 16, .stages = 1, .context_max = 64};
    assert_int_equal(plan_cuts(&sizes.config, &shape, cuts, &n), STATUS_OK);
    assert_true(n <= PLAN_CUTS_MAX);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(cuts[n - 1 - i].attention_slices, 1u << i);
    shape.attention_slices = 16;
    assert_int_equal(plan_cuts(&sizes.config, &shape, cuts, &n), STATUS_OK);
    assert_int_equal(cuts[n - 1].attention_slices, 16);
}

/* The largest rank's bytes on 3 slices in so many groups, with two sequences. */
static uint64_t largest_rank(const plan_sizes_t *sizes, uint32_t groups)
{
    plan_shape_t shape = {.tp = 3, .stages = 1, .context_max = 64, .expert_groups = groups};
    uint64_t most = 0;
    for (uint32_t s = 0; s < 3; s++) {
        plan_need_t need;
        assert_int_equal(plan_need(sizes, &shape, 0, s, &need), STATUS_OK);
        uint64_t bytes = need.fixed + plan_kv_tokens_needed(&sizes->config, &shape) * need.kv_per_token;
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Places on three hosts that hold a rank of `rank_bytes` each. */
static status_t place_three(plan_sizes_t *sizes, uint32_t groups, uint64_t rank_bytes,
                            plan_placement_t *out)
{
    static const char *const digests[] = {DIGEST};
    static const char *const ids[] = {"a", "b", "c"};
    plan_host_t hosts[3];
    for (uint32_t i = 0; i < 3; i++)
        hosts[i] = (plan_host_t){.id = ids[i], .cores = 1, .memory_bytes = rank_bytes,
                                 .model_digests = digests, .n_model_digests = 1};
    plan_world_t world = {.hosts = hosts, .n_hosts = 3};
    plan_request_t request = {
        .deployment = "moe", .model_digest = DIGEST, .sizes = sizes, .replicas = 1,
        .shape = {.tp = 3, .stages = 1, .context_max = 64, .expert_groups = groups}};
    return plan_replica(&world, &request, out);
}

/* 8 experts on 3 slices: inside them one slice has 1/2, whole ones 3/8. */
static void test_a_replica_takes_the_next_cut_when_memory_is_short_and_says_which(void **state)
{
    (void)state;
    plan_sizes_t sizes = with_experts(8, 2, 4096);
    plan_placement_t *placed = MEM_NEW(plan_placement_t);
    uint64_t inside = largest_rank(&sizes, 1), whole = largest_rank(&sizes, 3);
    assert_true(whole < inside);
    assert_int_equal(place_three(&sizes, 0, inside, placed), STATUS_OK);
    assert_int_equal(placed->cut.expert_groups, 1);
    assert_int_equal(place_three(&sizes, 0, inside - 1, placed), STATUS_OK);
    assert_int_equal(placed->cut.expert_groups, 3);
    assert_int_equal(place_three(&sizes, 0, whole, placed), STATUS_OK);
    assert_int_equal(placed->cut.expert_groups, 3);
    assert_int_equal(place_three(&sizes, 0, whole - 1, placed), STATUS_REFUSED);
    assert_int_equal(place_three(&sizes, 1, inside - 1, placed), STATUS_REFUSED);
    assert_int_equal(place_three(&sizes, 2, inside, placed), STATUS_INVALID);
    free(placed);
}

static void forecast_three(const plan_sizes_t *sizes, uint64_t rank_bytes, forecast_t *out)
{
    hosts_device_t devices[3];
    uint32_t host_of[3] = {0};
    hosts_host_t host = {.name = "h", .n_devices = 3};
    hosts_file_t hosts = {
        .n_hosts = 1, .n_devices = 3, .hosts = &host, .devices = devices, .host_of = host_of};
    forecast_question_t question = {.sizes = sizes, .weights = QTYPE_BF16, .tp = 3, .stages = 1,
                                    .context = 64, .prompt = 64, .batch_max = 1};
    for (uint32_t i = 0; i < 3; i++)
        devices[i] = (hosts_device_t){.name = "d", .memory_bytes = rank_bytes, .link_bytes_s = 1e9,
                                      .memory_bytes_s = 1e9, .flops_s = {1e12, 1e12}};
    assert_int_equal(forecast_make(&question, &hosts, out), STATUS_OK);
}

static void test_a_forecast_names_the_cut_that_fits(void **state)
{
    (void)state;
    plan_sizes_t sizes = with_experts(8, 2, 4096);
    forecast_t *found = MEM_NEW(forecast_t);
    uint64_t inside = largest_rank(&sizes, 1), whole = largest_rank(&sizes, 3);
    forecast_three(&sizes, inside, found);
    assert_true(found->fits);
    assert_int_equal(found->shape.expert_groups, 1);
    assert_int_equal(found->shape.attention_slices, 3);
    forecast_three(&sizes, inside - 1, found);
    assert_true(found->fits);
    assert_int_equal(found->shape.expert_groups, 3);
    forecast_three(&sizes, whole - 1, found);
    assert_false(found->fits);
    assert_int_equal(found->shape.expert_groups, 3); /* what it would take least for */
    assert_int_equal(found->device_bytes_least, whole);
    free(found);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_four_slices_share_eight_experts_in_one_two_or_four_groups),
        cmocka_unit_test(test_every_part_has_one_owner_in_every_cut),
        cmocka_unit_test(test_the_rule_takes_the_groups_whose_busiest_slice_has_least_to_do),
        cmocka_unit_test(test_the_rule_for_models_that_people_have),
        cmocka_unit_test(test_cuts_that_cannot_be_are_refused_with_what_could),
        cmocka_unit_test(test_attention_on_some_slices_leaves_the_others_without_its_cache),
        cmocka_unit_test(test_every_replica_of_attention_has_all_its_leaves),
        cmocka_unit_test(test_replicas_of_attention_have_room_for_their_own_sequences),
        cmocka_unit_test(test_cuts_to_try_are_the_rules_then_the_smallest_then_fewer_copies),
        cmocka_unit_test(test_a_replica_takes_the_next_cut_when_memory_is_short_and_says_which),
        cmocka_unit_test(test_a_forecast_names_the_cut_that_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
