/* Ranks that were told to share a stage in different ways do not form: parts of sums would be
 * missing or there twice, and nobody would see it. Two real ranks of a recorded model, in processes
 * of their own. And what one stage may send while the next one waits for a head. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/fabric/hosts.h"
#include "worker/engine/rank.h"
#include "worker/engine/stage.h"

typedef struct {
    uint32_t groups[2], holders[2]; /* of rank 0 and 1 */
    bool form;
    uint32_t replicas[2];
} told_t;

static bool have_hosts;
static told_t told; /* before the ranks are forked */

static void on_active(void *context, const char *text_identity, uint64_t kv_tokens,
                      uint32_t context_max)
{
    (void)text_identity, (void)kv_tokens, (void)context_max;
    leader_stop(context);
}

static int run_rank(fabric_t *fabric, shared_t *shared)
{
    uint32_t me = fabric_rank(fabric);
    rank_config_t config = {.model_path = SHOAL_TEST_DATA "/mixtral",
                            .model_digest = "sha256:mixtral",
                            .rank = me,
                            .slice = me,
                            .tp = 2,
                            .stages = 1,
                            .expert_groups = told.groups[me],
                            .attention_slices = told.holders[me],
                            .attention_replicas = told.replicas[me],
                            .layer_count = 3,
                            .threads = 1,
                            .context_max = 64,
                            .kv_tokens_max = 128,
                            .prefill_tokens_max = 8};
    rank_t *rank;
    (void)shared;
    EXPECT(rank_open(&config, &rank) == STATUS_OK);
    leader_t *leader = me == 0 ? leader_new() : NULL;
    rank_callbacks_t callbacks = {.context = leader, .active = me == 0 ? on_active : NULL};
    status_t status = rank_run(rank, fabric, leader, &callbacks);
    if (told.form) {
        EXPECT(status == STATUS_OK);
    } else {
        EXPECT(status != STATUS_OK);
        EXPECT(is_in(status_text(), "experts in "));
        fabric_abort(fabric, status_text());
    }
    rank_close(rank);
    leader_free(leader);
    return 0;
}

static void check(told_t now)
{
    ranks_t ranks;
    told = now;
    ranks_start(&ranks, 2, 2, 10000, run_rank);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static void test_ranks_of_one_cut_form(void **state)
{
    (void)state;
    check((told_t){{2, 2}, {1, 1}, true});
    check((told_t){{0, 1}, {0, 2}, true, {0, 1}}); /* what the rule takes, and the same by name */
    check((told_t){{1, 1}, {2, 2}, true, {2, 2}});
}

static void test_ranks_of_two_cuts_do_not_form(void **state)
{
    (void)state;
    check((told_t){{1, 2}, {2, 2}, false});
    check((told_t){{1, 1}, {2, 1}, false});
    check((told_t){{1, 1}, {2, 2}, false, {1, 2}});
}

static struct {
    uint32_t stages, columns, rows_more;
} lane; /* before the ranks are forked */

/* The rows of all steps that may be in flight beside the one whose head is made, which nobody takes. */
static int send_steps(fabric_t *fabric, shared_t *shared)
{
    stage_t stage = {.config = {.stages = lane.stages, .shared_head = true},
                     .residual_columns = lane.columns, .fabric = fabric};
    uint32_t n_rows = stage_rows_past_heads(&stage) + lane.rows_more;
    size_t bytes = (size_t)n_rows * lane.columns * sizeof(float);
    if (fabric_rank(fabric) == 1) {
        while (!atomic_load(&shared->done))
            nap();
        return 0;
    }
    bool passes = stage_passes_head(&stage, n_rows, 100);
    void *rows = calloc(1, bytes);
    status_t status = STATUS_OK;
    for (uint32_t i = 0; i + 1 < lane.stages && status == STATUS_OK; i++)
        status = fabric_send(fabric, 1, FABRIC_ACTIVATIONS, NULL, rows, bytes);
    free(rows);
    atomic_store(&shared->done, 1); /* first: the other rank naps until then */
    EXPECT(passes == (lane.rows_more == 0));
    EXPECT(status == (lane.rows_more == 0 ? STATUS_OK : STATUS_TIMEOUT));
    return 0;
}

/* The other rank has read as much as it gives no credit for yet, and reads no more. */
static int send_steps_to_a_host(host_rank_t *rank)
{
    const size_t n = FABRIC_ACTIVATIONS_BYTES / 4 - FABRIC_MESSAGE_BYTES;
    fabric_t *fabric;
    uint64_t blocks;
    rank->config.shm_fd = -1;
    EXPECT(fabric_open(&rank->config, &fabric) == STATUS_OK);
    EXPECT(fabric_form(fabric, "sha256:aa", 1, 10000, &blocks) == STATUS_OK);
    void *bytes = calloc(1, n);
    status_t status = rank->config.rank == 0
                          ? fabric_send(fabric, 1, FABRIC_ACTIVATIONS, NULL, bytes, n)
                          : fabric_receive_exact(fabric, 0, FABRIC_ACTIVATIONS, NULL, bytes, n);
    free(bytes);
    EXPECT(status == STATUS_OK);
    int result = send_steps(fabric, rank->shared);
    fabric_close(fabric);
    return result;
}

static void test_steps_that_pass_heads_lie_in_a_lane_between_hosts(void **state)
{
    ranks_t ranks;
    const char *all = getenv("SHOAL_REQUIRE_ALL");
    (void)state;
    if (!have_hosts && all && *all)
        fail_msg("%s", "no network namespaces with veth links here: run the tests as root");
    if (!have_hosts)
        skip();
    lane.stages = 2;
    lane.columns = 2048;
    lane.rows_more = 0;
    hosts_start(&ranks, 2, 1, 1, 2000, send_steps_to_a_host);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static void send_to_nobody(uint32_t stages, uint32_t columns, uint32_t rows_more)
{
    ranks_t ranks;
    lane.stages = stages;
    lane.columns = columns;
    lane.rows_more = rows_more;
    ranks_start(&ranks, 2, 1, rows_more ? 300 : 10000, send_steps);
    assert_int_equal(ranks_finish(&ranks, 0), 0);
}

static void test_steps_that_pass_heads_lie_in_a_lane_that_nobody_reads(void **state)
{
    (void)state;
    send_to_nobody(2, 2048, 0);
    send_to_nobody(2, 2048, 1);
    send_to_nobody(3, 576, 0);
    send_to_nobody(5, 8192, 0);
    send_to_nobody(5, 8192, 1);
}

static void test_a_head_of_the_last_stage_alone_limits_no_step(void **state)
{
    (void)state;
    stage_t stage = {.config = {.stages = 2}, .residual_columns = 8192};
    assert_true(stage_passes_head(&stage, 8192, 100));
}

int main(void)
{
    have_hosts = hosts_make();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_of_one_cut_form),
        cmocka_unit_test(test_ranks_of_two_cuts_do_not_form),
        cmocka_unit_test(test_steps_that_pass_heads_lie_in_a_lane_that_nobody_reads),
        cmocka_unit_test(test_steps_that_pass_heads_lie_in_a_lane_between_hosts),
        cmocka_unit_test(test_a_head_of_the_last_stage_alone_limits_no_step),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (have_hosts)
        hosts_remove();
    return failed;
}
