/* Ranks on hosts. A tp 1 rank of the whole SmolLM2 needs about 300 MiB, so hosts of 4 GiB hold
 * several and memory only decides where a test makes it small. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/plan.h"
#include "tests/unit/model/plan_models.h"

#define GIB (1ull << 30)
#define DIGEST "sha256:aa"

static const char *const digests[] = {"sha256:00", DIGEST};
static plan_sizes_t sizes;
static plan_placement_t placed;

static plan_host_t host(const char *id, uint32_t cores, uint64_t memory_bytes)
{
    return (plan_host_t){.id = id, .cores = cores, .memory_bytes = memory_bytes,
                         .model_digests = digests, .n_model_digests = 2};
}

static plan_request_t request(uint32_t tp, uint32_t stages)
{
    sizes = plan_smollm2();
    return (plan_request_t){
        .deployment = "smol", .model_digest = DIGEST, .sizes = &sizes, .replicas = 1,
        .shape = {.tp = tp, .stages = stages, .context_max = 512},
    };
}

/* Places and returns the hosts of the ranks as "abba", by the last letter of their ids. */
static const char *place(const plan_world_t *world, const plan_request_t *wanted)
{
    static char text[PLAN_RANKS_MAX + 1];
    status_t status = plan_replica(world, wanted, &placed);
    if (status != STATUS_OK)
        return status == STATUS_REFUSED ? "refused" : "invalid";
    for (uint32_t i = 0; i < placed.n_ranks; i++) {
        const char *id = placed.ranks[i].host;
        assert_int_equal(placed.ranks[i].stage, i / wanted->shape.tp);
        assert_int_equal(placed.ranks[i].slice, i % wanted->shape.tp);
        text[i] = id[strlen(id) - 1];
    }
    text[placed.n_ranks] = 0;
    return text;
}

static void test_two_cores_carry_two_stages_of_two_slices(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 2, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 1};
    plan_request_t wanted = request(2, 2);
    assert_string_equal(place(&world, &wanted), "aaaa");
    assert_true(placed.oversubscribed);
    assert_int_equal(placed.kv_tokens, 8 * 512);
    assert_true(placed.shared_head);
    assert_int_equal(placed.ranks[0].layer_count, 15);
    assert_int_equal(placed.ranks[2].layer_first, 15);
    assert_int_equal(placed.ranks[2].layer_count, 15);
    plan_need_t need;
    wanted.shape.shared_head = true;
    assert_int_equal(plan_need(&sizes, &wanted.shape, 1, 1, &need), STATUS_OK);
    assert_int_equal(placed.ranks[3].memory_bytes, need.fixed + 4096 * need.kv_per_token);
    for (int i = 0; i < 4; i++)
        assert_int_equal(placed.ranks[i].threads, 1);
}

static void test_one_host_with_enough_cores_is_preferred_and_its_cores_are_shared(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 2, 4 * GIB), host("b", 8, 4 * GIB), host("c", 4, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 3};
    plan_request_t wanted = request(2, 2);
    assert_string_equal(place(&world, &wanted), "bbbb");
    assert_int_equal(placed.ranks[0].threads, 2);
    assert_false(placed.oversubscribed);
    wanted.replicas = 6; /* two on each host, so half of b's cores are left for the other */
    assert_string_equal(place(&world, &wanted), "bbbb");
    assert_int_equal(placed.ranks[0].threads, 1);
}

static void test_stages_go_to_several_hosts_when_none_alone_has_the_cores(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 2, 4 * GIB), host("b", 2, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 2};
    plan_request_t wanted = request(2, 2);
    assert_string_equal(place(&world, &wanted), "aabb");
    assert_false(placed.shared_head); /* rows of logits would go over the network */
    assert_int_equal(placed.ranks[2].layer_first, 19);
    wanted = request(1, 4);
    assert_string_equal(place(&world, &wanted), "aabb");
}

static void test_slices_go_to_several_hosts_when_no_host_takes_a_stage(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 1, 4 * GIB), host("b", 1, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 2};
    plan_request_t wanted = request(2, 1);
    assert_string_equal(place(&world, &wanted), "ab");
    wanted = request(2, 2); /* four ranks on two cores: two a core, stage by stage */
    assert_string_equal(place(&world, &wanted), "aabb");
    assert_true(placed.oversubscribed);
}

static void test_memory_sends_a_stage_to_another_host(void **state)
{
    (void)state;
    plan_request_t wanted = request(1, 2);
    plan_need_t first, second;
    assert_int_equal(plan_need(&sizes, &wanted.shape, 0, 0, &first), STATUS_OK);
    assert_int_equal(plan_need(&sizes, &wanted.shape, 1, 0, &second), STATUS_OK);
    uint64_t a = first.fixed + 1024 * first.kv_per_token;
    uint64_t b = second.fixed + 1024 * second.kv_per_token;
    plan_host_t hosts[] = {host("a", 8, a > b ? a : b), host("b", 8, a > b ? a : b)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 2};
    assert_string_equal(place(&world, &wanted), "ab");
    assert_int_equal(placed.kv_tokens, 1024); /* two sequences of 512, not one more */
    wanted.shape.shared_head = true; /* now one host holds both, which share the head */
    hosts[0].memory_bytes = 0;
    for (uint32_t stage = 0; stage < 2; stage++) {
        assert_int_equal(plan_need(&sizes, &wanted.shape, stage, 0, &first), STATUS_OK);
        hosts[0].memory_bytes += first.fixed + 1024 * first.kv_per_token;
    }
    assert_string_equal(place(&world, &wanted), "aa");
    assert_int_equal(placed.kv_tokens, 1024);
    hosts[0].memory_bytes = hosts[1].memory_bytes = (a < b ? a : b) - 1;
    assert_string_equal(place(&world, &wanted), "refused");
    assert_non_null(strstr(status_text(), "2 ranks need"));
    assert_non_null(strstr(status_text(), "the most free host is a with"));
}

static void test_replicas_spread_over_the_hosts(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 4, 4 * GIB), host("b", 4, 4 * GIB), host("c", 4, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 3};
    plan_request_t wanted[4];
    plan_placement_t placements[4];
    status_t statuses[4];
    char *reasons[4];
    for (uint32_t i = 0; i < 4; i++) {
        wanted[i] = request(2, 1);
        wanted[i].ordinal = i;
        wanted[i].replicas = 4;
    }
    wanted[3].model_digest = "sha256:unknown";
    assert_int_equal(plan_replicas(&world, wanted, 4, placements, statuses, reasons), 3);
    assert_string_equal(placements[0].ranks[0].host, "a");
    assert_string_equal(placements[1].ranks[0].host, "b");
    assert_string_equal(placements[2].ranks[1].host, "c");
    assert_int_equal(statuses[3], STATUS_REFUSED);
    assert_null(reasons[0]);
    assert_string_equal(reasons[3], "smol/3: none of 3 hosts has model sha256:unknown");
    free(reasons[3]);
}

static void test_what_stands_already_counts_against_its_host(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 4, 4 * GIB), host("b", 4, 4 * GIB)};
    plan_existing_t existing[] = {
        {.host = "a", .deployment = "other", .threads = 3, .memory_bytes = GIB},
        {.host = "gone", .deployment = "smol", .threads = 3, .memory_bytes = GIB},
    };
    plan_world_t world = {.hosts = hosts, .n_hosts = 2, .existing = existing, .n_existing = 2};
    plan_request_t wanted = request(2, 1);
    assert_string_equal(place(&world, &wanted), "bb");
    existing[0].deployment = "smol"; /* this deployment's rank outweighs the lower id */
    existing[0].threads = 0;
    existing[0].memory_bytes = 0;
    assert_string_equal(place(&world, &wanted), "bb");
    existing[0] = (plan_existing_t){
        .host = "a", .deployment = "other", .threads = 0, .memory_bytes = 4 * GIB};
    assert_string_equal(place(&world, &wanted), "bb");
}

static void test_draining_hosts_take_nothing_and_suspect_ones_only_the_last_resort(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 8, 4 * GIB), host("b", 1, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 2};
    plan_request_t wanted = request(2, 1);
    hosts[0].suspect = true;
    assert_string_equal(place(&world, &wanted), "bb");
    hosts[1].draining = true;
    assert_string_equal(place(&world, &wanted), "aa");
    hosts[0].draining = true;
    assert_string_equal(place(&world, &wanted), "refused");
    assert_non_null(strstr(status_text(), "2 of 2 hosts with the model drain"));
}

static void test_a_replica_never_lies_on_both_ends_of_a_dead_link(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 2, 4 * GIB), host("b", 2, 4 * GIB), host("c", 2, 4 * GIB)};
    plan_host_pair_t avoided[] = {{"b", "a"}, {"c", "a"}};
    plan_world_t world = {
        .hosts = hosts, .n_hosts = 3, .avoided = avoided, .n_avoided = 1};
    plan_request_t wanted = request(2, 2);
    assert_string_equal(place(&world, &wanted), "aacc");
    world.n_avoided = 2; /* a is alone now, so the search begins again at b */
    assert_string_equal(place(&world, &wanted), "bbcc");
    hosts[2].draining = true; /* no two hosts are joined: one host must do, two ranks a core */
    assert_string_equal(place(&world, &wanted), "aaaa");
}

static void test_pinned_ranks_go_where_they_are_pinned_or_nowhere(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 8, 4 * GIB), host("b", 1, 4 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 2};
    plan_request_t wanted = request(2, 2);
    const char *pinned[] = {"b", "a", NULL, "b"};
    wanted.pinned_hosts = pinned;
    assert_string_equal(place(&world, &wanted), "baab");
    pinned[1] = "z";
    assert_string_equal(place(&world, &wanted), "refused");
    assert_non_null(strstr(status_text(), "rank 1 is pinned to host z, which is not there"));
    pinned[1] = "a";
    hosts[0].draining = true;
    assert_string_equal(place(&world, &wanted), "refused");
    assert_non_null(strstr(status_text(), "rank 1 is pinned to host a, but it drains"));
    hosts[0].draining = false;
    plan_host_pair_t avoided = {"a", "b"};
    world.avoided = &avoided;
    world.n_avoided = 1;
    assert_string_equal(place(&world, &wanted), "refused");
    assert_non_null(strstr(status_text(), "link to another host"));
}

static void test_a_host_takes_at_most_sixteen_ranks_a_core(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 1, 64 * GIB)};
    plan_world_t world = {.hosts = hosts, .n_hosts = 1};
    plan_request_t wanted = request(4, 4);
    assert_string_equal(place(&world, &wanted), "aaaaaaaaaaaaaaaa");
    wanted = request(1, 17);
    assert_string_equal(place(&world, &wanted), "refused");
    wanted = request(17, 1);
    assert_string_equal(place(&world, &wanted), "invalid");
    assert_non_null(strstr(status_text(), "smol/0: tp is 17"));
}

/* The order in which etcd lists hosts must not matter: two coordinators make the same plan. */
static void test_the_order_of_the_hosts_does_not_change_the_plan(void **state)
{
    (void)state;
    plan_host_t hosts[] = {host("a", 2, 4 * GIB), host("b", 2, 4 * GIB), host("c", 3, 4 * GIB)};
    plan_host_t turned[] = {hosts[2], hosts[1], hosts[0]};
    plan_world_t world = {.hosts = hosts, .n_hosts = 3};
    plan_request_t wanted = request(2, 3);
    assert_string_equal(place(&world, &wanted), "ccaabb");
    world.hosts = turned;
    assert_string_equal(place(&world, &wanted), "ccaabb");
}

static void test_ten_thousand_hosts_are_planned_in_a_moment(void **state)
{
    (void)state;
    enum { N = 10000 };
    plan_host_t *hosts = MEM_NEW_ARRAY(plan_host_t, N);
    plan_existing_t *existing = MEM_NEW_ARRAY(plan_existing_t, N);
    char(*ids)[8] = mem_new(N, sizeof *ids);
    for (uint32_t i = 0; i < N; i++) {
        ids[i][0] = 'h';
        for (uint32_t digit = 5, rest = i; digit > 0; digit--, rest /= 10)
            ids[i][digit] = (char)('0' + rest % 10);
        hosts[i] = host(ids[i], 1, 4 * GIB);
        existing[i] = (plan_existing_t){.host = ids[i], .deployment = "smol", .threads = 1};
    }
    plan_world_t world = {
        .hosts = hosts, .n_hosts = N, .existing = existing, .n_existing = N - 2};
    plan_request_t wanted = request(2, 2);
    assert_string_equal(place(&world, &wanted), "8899");
    free(ids);
    free(existing);
    free(hosts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_cores_carry_two_stages_of_two_slices),
        cmocka_unit_test(test_one_host_with_enough_cores_is_preferred_and_its_cores_are_shared),
        cmocka_unit_test(test_stages_go_to_several_hosts_when_none_alone_has_the_cores),
        cmocka_unit_test(test_slices_go_to_several_hosts_when_no_host_takes_a_stage),
        cmocka_unit_test(test_memory_sends_a_stage_to_another_host),
        cmocka_unit_test(test_replicas_spread_over_the_hosts),
        cmocka_unit_test(test_what_stands_already_counts_against_its_host),
        cmocka_unit_test(test_draining_hosts_take_nothing_and_suspect_ones_only_the_last_resort),
        cmocka_unit_test(test_a_replica_never_lies_on_both_ends_of_a_dead_link),
        cmocka_unit_test(test_pinned_ranks_go_where_they_are_pinned_or_nowhere),
        cmocka_unit_test(test_a_host_takes_at_most_sixteen_ranks_a_core),
        cmocka_unit_test(test_the_order_of_the_hosts_does_not_change_the_plan),
        cmocka_unit_test(test_ten_thousand_hosts_are_planned_in_a_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
