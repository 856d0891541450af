/* Agents and ranks as they really run: formation, serving over gRPC, deaths, restarts, drains. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent_process.h"
#include "common/base/memory.h"

#define SESSION_A "0123456789abcdef0123456789abcdef"
#define SESSION_B "fedcba9876543210fedcba9876543210"
/* Slows steps down, so that a sequence runs while the test does something to it. */
#define SLOW "leader.step=stall:20@*"

/* The undisturbed text of 40 tokens; every other shape and every disturbance has to equal it. */
static text_t oracle;

static void serve_once(cluster_t *cluster, const char *digest, uint32_t tp, uint32_t stages,
                       text_t *text)
{
    attached_t stream;
    Shoal__Cluster__V1__ActiveRecord *active =
        wait_active(cluster, put_plan(cluster, digest, tp, stages));
    assert_int_equal(attach(cluster, active->leader, active->text_identity, 1, &stream),
                     STATUS_OK);
    assert_string_equal(stream.identity, active->text_identity);
    assert_true(stream.credit > 100);
    admit(&stream, SESSION_A, 40, 0, false);
    read_text(&stream, SESSION_A, 4096, text);
    assert_true(text->ended);
    assert_int_equal(text->reason, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    assert_int_equal(text->n, 40);
    detach(&stream);
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
}

static void test_assignments_become_active_replicas_that_all_serve_one_text(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, NULL);
    char *digest = model_digest_of_host(&cluster);
    const uint32_t shapes[][2] = {{1, 1}, {2, 2}, {1, 3}, {2, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        text_t text = {0};
        serve_once(&cluster, digest, shapes[i][0], shapes[i][1], &text);
        if (i == 0)
            oracle = text;
        assert_memory_equal(text.ids, oracle.ids, sizeof text.ids);
    }
    /* Its plan gone, its ranks end; SIGTERM then finds nothing left to wait for. */
    remove_plan(&cluster);
    uint64_t begin = clock_ms();
    kill(cluster.agent, SIGTERM);
    assert_int_equal(cluster_wait_agent(&cluster), 0);
    assert_true(clock_ms() - begin < 4000);
    assert_false(has_key(&cluster, "/shoal/test/hosts/a"));
    free(digest);
    cluster_end(&cluster);
}

static void test_a_second_stream_attaches_and_gets_the_text_and_what_was_admitted(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, SLOW);
    char *digest = model_digest_of_host(&cluster);
    attached_t first, second;
    text_t text = {0}, late = {0}, unknown = {0};
    Shoal__Cluster__V1__ActiveRecord *active =
        wait_active(&cluster, put_plan(&cluster, digest, 1, 1));
    assert_int_equal(attach(&cluster, active->leader, "", 1, &first), STATUS_OK);
    admit(&first, SESSION_A, 40, 0, false);
    read_text(&first, SESSION_A, 5, &text);
    detach(&first); /* its coordinator is gone; the sequence goes on */
    assert_int_equal(attach(&cluster, active->leader, "", 1, &second), STATUS_OK);
    admit(&second, SESSION_A, 0, 0, true);
    read_text(&second, SESSION_A, 4096, &late);
    assert_int_equal(late.n, 40);
    assert_memory_equal(late.ids, oracle.ids, sizeof late.ids);
    assert_true(late.has_admitted);
    assert_int_equal(late.n_admitted_prompt, 1);
    admit(&second, SESSION_B, 0, 0, true);
    read_text(&second, SESSION_B, 4096, &unknown);
    assert_int_equal(unknown.reason, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__REFUSED);
    assert_string_equal(unknown.code, "unknown");
    detach(&second);
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
    free(digest);
    cluster_end(&cluster);
}

static void test_a_hello_of_another_identity_or_version_is_refused_by_name(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, NULL);
    char *digest = model_digest_of_host(&cluster);
    attached_t stream;
    Shoal__Cluster__V1__ActiveRecord *active =
        wait_active(&cluster, put_plan(&cluster, digest, 1, 1));
    assert_int_equal(attach(&cluster, active->leader, "sha256:other", 1, &stream),
                     STATUS_REFUSED);
    assert_non_null(strstr(status_text(), "sha256:other"));
    assert_non_null(strstr(status_text(), active->text_identity));
    detach(&stream);
    assert_int_equal(attach(&cluster, active->leader, "", 2, &stream), STATUS_REFUSED);
    assert_non_null(strstr(status_text(), "contract version 1"));
    detach(&stream);
    /* Bytes that are no message end this stream and nothing else. */
    assert_int_equal(attach(&cluster, active->leader, "", 1, &stream), STATUS_OK);
    assert_int_equal(rpc_stream_send(stream.stream, "\xff\xff\xff\xff", 4), STATUS_OK);
    buffer_t bytes = {0};
    status_t status;
    bool ended;
    while ((status = rpc_stream_read(stream.stream, WAIT_MS, &bytes, &ended)) == STATUS_OK)
        assert_false(ended);
    assert_int_equal(status, STATUS_INVALID);
    buffer_release(&bytes);
    detach(&stream);
    assert_int_equal(attach(&cluster, active->leader, "", 1, &stream), STATUS_OK);
    text_t text = {0};
    admit(&stream, SESSION_A, 40, 0, false);
    read_text(&stream, SESSION_A, 4096, &text);
    assert_memory_equal(text.ids, oracle.ids, sizeof text.ids);
    detach(&stream);
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
    free(digest);
    cluster_end(&cluster);
}

/* Sends a signal to a rank of a running 2 × 2 replica while a sequence runs; gives the record. */
static Shoal__Cluster__V1__FailureRecord *hurt(cluster_t *cluster, const char *digest,
                                               uint32_t rank, int signal, uint64_t within_ms)
{
    attached_t stream;
    text_t text = {0};
    uint64_t epoch = put_plan(cluster, digest, 2, 2);
    Shoal__Cluster__V1__ActiveRecord *active = wait_active(cluster, epoch);
    assert_int_equal(attach(cluster, active->leader, "", 1, &stream), STATUS_OK);
    admit(&stream, SESSION_A, 1500, 0, false);
    read_text(&stream, SESSION_A, 3, &text);
    uint64_t begin = clock_ms();
    kill((pid_t)pid_of_rank(cluster, epoch, rank), signal);
    Shoal__Cluster__V1__FailureRecord *failed = wait_failed(cluster, epoch);
    assert_true(clock_ms() - begin < within_ms);
    if (rank != 0) {
        /* The leader lives: it ends what it was asked for, exactly once. */
        read_text(&stream, SESSION_A, 4096, &text);
        assert_true(text.ended);
        assert_int_equal(text.reason, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__REPLICA_LOST);
    }
    assert_memory_equal(text.ids, oracle.ids, 3 * sizeof *text.ids);
    detach(&stream);
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
    return failed;
}

static void test_deaths_are_told_with_their_cause_and_the_living_ranks_are_kept(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, SLOW);
    char *digest = model_digest_of_host(&cluster);
    /* Killed from outside: no crash. */
    Shoal__Cluster__V1__FailureRecord *failed = hurt(&cluster, digest, 2, SIGKILL, 3000);
    assert_int_equal(failed->rank, 2);
    assert_string_equal(failed->host, "a");
    assert_false(failed->crashed);
    assert_non_null(strstr(failed->message, "killed by signal 9"));
    int64_t kept = pid_of_rank(&cluster, failed->epoch, 0);
    int64_t dead = pid_of_rank(&cluster, failed->epoch, 2);
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    /* By its own doing: a crash, with the session that was in the step. */
    failed = hurt(&cluster, digest, 1, SIGSEGV, 3000);
    assert_int_equal(failed->rank, 1);
    assert_true(failed->crashed);
    assert_int_equal(failed->n_sessions, 1);
    assert_string_equal(failed->sessions[0], SESSION_A);
    assert_int_equal(pid_of_rank(&cluster, failed->epoch, 0), kept);
    assert_int_not_equal(pid_of_rank(&cluster, failed->epoch, 2), dead);
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    /* Stopped: silent, killed by the agent, no crash. */
    failed = hurt(&cluster, digest, 3, SIGSTOP, 3000);
    assert_int_equal(failed->rank, 3);
    assert_false(failed->crashed);
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    /* The leader itself: what it wrote down before the step names the session. */
    failed = hurt(&cluster, digest, 0, SIGABRT, 3000);
    assert_int_equal(failed->rank, 0);
    assert_true(failed->crashed);
    assert_int_equal(failed->n_sessions, 1);
    assert_string_equal(failed->sessions[0], SESSION_A);
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    text_t text = {0};
    serve_once(&cluster, digest, 2, 2, &text);
    assert_memory_equal(text.ids, oracle.ids, sizeof text.ids);
    free(digest);
    cluster_end(&cluster);
}

static void test_a_rank_that_stands_still_at_work_is_killed_within_seconds(void **state)
{
    (void)state;
    cluster_t cluster;
    attached_t stream;
    cluster_start(&cluster, "rank.layer=stall:120000@9");
    char *digest = model_digest_of_host(&cluster);
    uint64_t epoch = put_plan(&cluster, digest, 1, 1);
    Shoal__Cluster__V1__ActiveRecord *active = wait_active(&cluster, epoch);
    assert_int_equal(attach(&cluster, active->leader, "", 1, &stream), STATUS_OK);
    uint64_t begin = clock_ms();
    admit(&stream, SESSION_A, 40, 0, false);
    Shoal__Cluster__V1__FailureRecord *failed = wait_failed(&cluster, epoch);
    assert_true(clock_ms() - begin >= 4500);
    assert_non_null(strstr(failed->message, "without computing for 5000 ms"));
    assert_false(failed->crashed);
    detach(&stream);
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
    free(digest);
    cluster_end(&cluster);
}

static void write_points(const char *path, const char *points)
{
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(points, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* Its heart beats on; only its weights do not come. */
static void test_a_rank_that_hangs_while_it_loads_is_killed_named_and_replaced(void **state)
{
    (void)state;
    cluster_t cluster;
    char path[] = "/tmp/shoal-load-points-XXXXXX", points[64];
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    snprintf(points, sizeof points, "file:%s", path);
    write_points(path, "rank.load=stall:120000@2"); /* the second layer */
    assert_int_equal(setenv("SHOAL_LOAD_STUCK", "2s", 1), 0);
    cluster_start(&cluster, points);
    assert_int_equal(unsetenv("SHOAL_LOAD_STUCK"), 0);
    char *digest = model_digest_of_host(&cluster);
    uint64_t begin = clock_ms();
    Shoal__Cluster__V1__FailureRecord *failed =
        wait_failed(&cluster, put_plan(&cluster, digest, 1, 1));
    assert_true(clock_ms() - begin >= 2000);
    assert_int_equal(failed->rank, 0);
    assert_false(failed->crashed);
    assert_non_null(strstr(failed->message, "rank 0 (host a)"));
    assert_non_null(strstr(failed->message, "loading (25 %) without progress for 2000 ms"));
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    write_points(path, "");
    text_t text = {0};
    serve_once(&cluster, digest, 1, 1, &text);
    assert_memory_equal(text.ids, oracle.ids, sizeof text.ids);
    unlink(path);
    free(digest);
    cluster_end(&cluster);
}

static void test_a_long_load_is_shown_in_etcd_until_it_ends(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, "rank.load=stall:1300@*"); /* three layers */
    char *digest = model_digest_of_host(&cluster);
    uint64_t epoch = put_plan(&cluster, digest, 1, 1);
    wait_loading(&cluster, epoch, 25);
    wait_loading(&cluster, epoch, 50);
    /* The load ends while etcd is away: the key goes all the same. */
    etcd_server_kill(&cluster.server);
    uint64_t begin = clock_ms();
    while (clock_ms() - begin < 3500)
        net_test_nap();
    etcd_server_restart(&cluster.server);
    assert_int_equal(etcd_wait_ready(cluster.etcd, 20000), STATUS_OK);
    shoal__cluster__v1__active_record__free_unpacked(wait_active(&cluster, epoch), NULL);
    wait_for(!has_key(&cluster, "/shoal/test/replicas/smol/0/weights/a"));
    free(digest);
    cluster_end(&cluster);
}

static void test_no_rank_outlives_its_agent(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, NULL);
    char *digest = model_digest_of_host(&cluster);
    uint64_t epoch = put_plan(&cluster, digest, 2, 2);
    shoal__cluster__v1__active_record__free_unpacked(wait_active(&cluster, epoch), NULL);
    int64_t pids[4];
    for (uint32_t i = 0; i < 4; i++) {
        pids[i] = pid_of_rank(&cluster, epoch, i);
        assert_true(is_alive(pids[i]));
    }
    kill((pid_t)pids[3], SIGSTOP); /* one that could not see an end of file */
    kill(cluster.agent, SIGKILL);
    uint64_t begin = clock_ms();
    cluster_wait_agent(&cluster);
    while ((is_alive(pids[0]) || is_alive(pids[1]) || is_alive(pids[2]) || is_alive(pids[3])) &&
           clock_ms() - begin < 1000)
        net_test_nap();
    for (uint32_t i = 0; i < 4; i++)
        assert_false(is_alive(pids[i]));
    /* Back with the same data: the assignment still stands, its epoch is over. */
    cluster_spawn_agent(&cluster, NULL);
    Shoal__Cluster__V1__FailureRecord *failed = wait_failed(&cluster, epoch);
    assert_non_null(strstr(failed->message, "restarted"));
    assert_false(failed->crashed);
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    text_t text = {0};
    serve_once(&cluster, digest, 2, 2, &text);
    assert_memory_equal(text.ids, oracle.ids, sizeof text.ids);
    free(digest);
    cluster_end(&cluster);
}

static void test_serving_goes_on_while_etcd_is_away(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, SLOW);
    char *digest = model_digest_of_host(&cluster);
    attached_t stream;
    text_t text = {0}, fresh = {0};
    Shoal__Cluster__V1__ActiveRecord *active =
        wait_active(&cluster, put_plan(&cluster, digest, 1, 1));
    assert_int_equal(attach(&cluster, active->leader, "", 1, &stream), STATUS_OK);
    admit(&stream, SESSION_A, 40, 0, false);
    read_text(&stream, SESSION_A, 2, &text);
    etcd_server_kill(&cluster.server);
    read_text(&stream, SESSION_A, 4096, &text);
    assert_memory_equal(text.ids, oracle.ids, sizeof text.ids);
    admit(&stream, SESSION_B, 40, 0, false);
    read_text(&stream, SESSION_B, 4096, &fresh);
    assert_memory_equal(fresh.ids, oracle.ids, sizeof fresh.ids);
    detach(&stream);
    /* Emptied and back: the agent registers anew and takes new plans. */
    etcd_server_wipe(&cluster.server);
    etcd_server_restart(&cluster.server);
    assert_int_equal(etcd_wait_ready(cluster.etcd, 20000), STATUS_OK);
    wait_for(has_key(&cluster, "/shoal/test/hosts/a"));
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
    free(digest);
    cluster_end(&cluster);
}

static void test_a_draining_agent_lets_its_sequences_end_and_takes_no_new_ones(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, SLOW);
    char *digest = model_digest_of_host(&cluster);
    attached_t stream;
    text_t text = {0}, late = {0};
    Shoal__Cluster__V1__ActiveRecord *active =
        wait_active(&cluster, put_plan(&cluster, digest, 2, 1));
    assert_int_equal(attach(&cluster, active->leader, "", 1, &stream), STATUS_OK);
    admit(&stream, SESSION_A, 40, 0, false);
    read_text(&stream, SESSION_A, 2, &text);
    kill(cluster.agent, SIGTERM);
    wait_for(has_key(&cluster, "/shoal/test/drains/a"));
    usleep(100000);
    admit(&stream, SESSION_B, 40, 0, false);
    read_text(&stream, SESSION_B, 4096, &late);
    assert_int_equal(late.reason, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__REFUSED);
    assert_string_equal(late.code, "draining");
    assert_int_equal(stream.credit, 0);
    /* What ran when the refusal was read has been read past; attach and read it all. */
    text_t whole = {.joining = true};
    admit(&stream, SESSION_A, 0, 0, true);
    read_text(&stream, SESSION_A, 4096, &whole);
    assert_int_equal(whole.reason, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    assert_memory_equal(whole.ids, oracle.ids, sizeof whole.ids);
    detach(&stream);
    assert_int_equal(cluster_wait_agent(&cluster), 0);
    shoal__cluster__v1__active_record__free_unpacked(active, NULL);
    free(digest);
    cluster_end(&cluster);
}

static void test_wrong_plans_and_starts_end_in_a_word_about_what_is_wrong(void **state)
{
    (void)state;
    cluster_t cluster;
    cluster_start(&cluster, NULL);
    Shoal__Cluster__V1__FailureRecord *failed =
        wait_failed(&cluster, put_plan(&cluster, "sha256:0000", 1, 1));
    assert_non_null(strstr(failed->message, "host a has no model sha256:0000"));
    shoal__cluster__v1__failure_record__free_unpacked(failed, NULL);
    /* A value that is no plan at all changes nothing. */
    must_put(cluster.etcd, "/shoal/test/assign/a/smol/0", "no plan", 0);
    must_put(cluster.etcd, "/shoal/test/assign/a/smol/x/y", "no key", 0);
    char *digest = model_digest_of_host(&cluster);
    text_t text = {0};
    serve_once(&cluster, digest, 1, 1, &text);
    /* A second agent on the same data directory. */
    const char *model = SHOAL_TEST_DATA "/gguf-llama-q8_0/model.gguf";
    const char *twice[] = {"agent", "--models", model, "--data", cluster.data, "--etcd",
                           cluster.server.endpoint, NULL};
    assert_int_equal(run_agent_to_its_end(twice), 4);
    char other[96];
    snprintf(other, sizeof other, "%s/other", cluster.data);
    const char *alone[] = {"agent", "--models", model, "--data", other, "--etcd",
                           "http://127.0.0.1:1", "--store-wait", "1s", NULL};
    uint64_t begin = clock_ms();
    assert_int_equal(run_agent_to_its_end(alone), 6);
    assert_true(clock_ms() - begin >= 1000 && clock_ms() - begin < 6000);
    const char *no_model[] = {"agent", "--models", "/nowhere", "--data", other, NULL};
    assert_int_equal(run_agent_to_its_end(no_model), 2);
    free(digest);
    cluster_end(&cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_assignments_become_active_replicas_that_all_serve_one_text),
        cmocka_unit_test(test_a_second_stream_attaches_and_gets_the_text_and_what_was_admitted),
        cmocka_unit_test(test_a_hello_of_another_identity_or_version_is_refused_by_name),
        cmocka_unit_test(test_deaths_are_told_with_their_cause_and_the_living_ranks_are_kept),
        cmocka_unit_test(test_a_rank_that_stands_still_at_work_is_killed_within_seconds),
        cmocka_unit_test(test_a_rank_that_hangs_while_it_loads_is_killed_named_and_replaced),
        cmocka_unit_test(test_a_long_load_is_shown_in_etcd_until_it_ends),
        cmocka_unit_test(test_no_rank_outlives_its_agent),
        cmocka_unit_test(test_serving_goes_on_while_etcd_is_away),
        cmocka_unit_test(test_a_draining_agent_lets_its_sequences_end_and_takes_no_new_ones),
        cmocka_unit_test(test_wrong_plans_and_starts_end_in_a_word_about_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
