/* Jobs: claims, results, adoption. */
#include "tests/unit/coordinator/core_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { A = 0 };

/* A core with one replica and its link open, after its first reading of `mine`. */
static uint64_t ready_with(rig_t *rig, const core_config_t *config, uint64_t *epoch_out)
{
    rig_start_config(rig, 1, config);
    uint64_t epoch = rig_replica(rig, 0, "h0", RIG_IDENTITY);
    rig_pass(rig, 1);
    core_event_t mine = {.kind = CORE_EVENT_CLAIMS};
    core_action_t *asked = rig_last(rig, CORE_ACTION_JOBS_MINE);
    assert_non_null(asked);
    mine.claims.op = asked->op;
    rig_event(rig, &mine);
    rig_pass(rig, 300);
    *epoch_out = epoch;
    core_action_t *claim = rig_last(rig, CORE_ACTION_JOBS_CLAIM);
    assert_non_null(claim);
    return claim->op;
}

static uint64_t ready(rig_t *rig, uint64_t *epoch_out)
{
    core_config_t config = {0};
    return ready_with(rig, &config, epoch_out);
}

static void unreachable(rig_t *rig, uint64_t op)
{
    core_event_t event = {.kind = CORE_EVENT_CLAIMED};
    event.claimed.op = op;
    event.claimed.code = JOBS_UNREACHABLE;
    rig_event(rig, &event);
}

static const char *item_id(uint64_t index)
{
    static char id[CORE_ID_SIZE];
    core_item_session_id("job", index, id);
    return id;
}

static uint64_t finish_item(rig_t *rig, uint64_t epoch)
{
    uint64_t link = rig_link(rig);
    rig_hello(rig, link, epoch, 1024);
    const uint32_t ids[] = {A, A, A, A, A, A, A, A};
    rig_output(rig, link, item_id(0), 1, 0, ids, 8);
    rig_end(rig, link, item_id(0), 1, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    core_action_t *commit = rig_last(rig, CORE_ACTION_JOBS_COMPLETE);
    assert_non_null(commit);
    return commit->op;
}

static void test_a_claim_without_an_answer_is_repeated_with_its_nonce(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    uint64_t nonce = rig_last(&rig, CORE_ACTION_JOBS_CLAIM)->claim.nonce;
    unreachable(&rig, op);
    rig_clear(&rig);
    rig_pass(&rig, 2000);
    core_action_t *again = rig_last(&rig, CORE_ACTION_JOBS_CLAIM);
    assert_non_null(again);
    assert_int_equal(again->claim.nonce, nonce);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_MINE), 0);
    rig_claimed(&rig, again->op, 0, 1, 0);
    /* As many came as were asked for: there may be more, and the next claim is a new one. */
    assert_int_equal(rig_last(&rig, CORE_ACTION_JOBS_CLAIM)->claim.nonce, nonce + 1);
    rig_stop(&rig);
}

static void test_a_result_is_committed_until_the_store_answers(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    rig_claimed(&rig, op, 0, 1, 0);
    op = finish_item(&rig, epoch);
    core_action_t *commit = rig_last(&rig, CORE_ACTION_JOBS_COMPLETE);
    assert_int_equal(commit->item.ref.attempt, 1);
    assert_int_equal(commit->item.process.revision, 100);
    assert_int_equal(commit->item.result.n_ids, 8);
    assert_int_equal(commit->item.result.text_size, 8);
    for (int i = 0; i < 3; i++) {
        rig_clear(&rig);
        rig_jobs_done(&rig, op, JOBS_UNREACHABLE, 0);
        rig_pass(&rig, 1000);
        commit = rig_last(&rig, CORE_ACTION_JOBS_COMPLETE);
        assert_non_null(commit);
        op = commit->op;
    }
    rig_clear(&rig);
    rig_jobs_done(&rig, op, JOBS_DUP, 0);
    rig_pass(&rig, 5000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_COMPLETE), 0);
    rig_stop(&rig);
}

static void test_with_redis_away_an_item_runs_on_and_commits_when_it_is_back(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    rig_claimed(&rig, op, 0, 1, 0);
    core_event_t away = {.kind = CORE_EVENT_STORE};
    away.store.store = CORE_STORE_REDIS;
    rig_event(&rig, &away);
    rig_hello(&rig, rig_link(&rig), epoch, 1024);
    const uint32_t ids[] = {A, A, A, A, A, A, A, A};
    rig_output(&rig, rig_link(&rig), item_id(0), 1, 0, ids, 8);
    rig_end(&rig, rig_link(&rig), item_id(0), 1,
            SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    rig_clear(&rig);
    rig_pass(&rig, 3000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_COMPLETE), 0);
    away.store.state = CORE_STORE_UP;
    rig_event(&rig, &away);
    rig_pass(&rig, 1000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_COMPLETE), 1);
    rig_stop(&rig);
}

static void test_items_are_claimed_only_against_credit_that_nobody_waits_for(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    rig_generate(&rig, 1, '1', 60, "");
    rig_hello(&rig, rig_link(&rig), epoch, 80);
    rig_generate(&rig, 2, '2', 60, ""); /* waits */
    core_event_t none = {.kind = CORE_EVENT_CLAIMED};
    none.claimed.op = op;
    rig_event(&rig, &none);
    rig_clear(&rig);
    rig_pass(&rig, 5000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_CLAIM), 0);
    rig_stop(&rig);
}

static void test_a_claim_that_is_not_known_here_is_given_back(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    rig_claimed(&rig, op, 0, 1, 0);
    size_t before = rig_count(&rig, CORE_ACTION_JOBS_MINE);
    /* Claims that find nothing are answered on the way to the next reading. */
    for (int i = 0; i < 400 && rig_count(&rig, CORE_ACTION_JOBS_MINE) == before; i++) {
        core_event_t none = {.kind = CORE_EVENT_CLAIMED};
        none.claimed.op = rig_last(&rig, CORE_ACTION_JOBS_CLAIM)->op;
        rig_event(&rig, &none);
        rig_pass(&rig, 250);
    }
    core_action_t *mine = rig_last(&rig, CORE_ACTION_JOBS_MINE);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_MINE), before + 1);
    const core_item_ref_t refs[] = {{"job", 0, 1}, {"job", 7, 3}};
    core_event_t event = {.kind = CORE_EVENT_CLAIMS};
    event.claims.op = mine->op;
    event.claims.refs = refs;
    event.claims.n_refs = 2;
    rig_event(&rig, &event);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_RELEASE), 1);
    core_action_t *release = rig_last(&rig, CORE_ACTION_JOBS_RELEASE);
    assert_int_equal(release->item.ref.index, 7);
    assert_int_equal(release->item.ref.attempt, 3);
    rig_stop(&rig);
}

static void test_a_new_process_adopts_before_it_writes(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    rig_claimed(&rig, op, 0, 1, 0);
    core_event_t event = {.kind = CORE_EVENT_REGISTERED};
    event.registered = (jobs_process_t){1, 200};
    rig_event(&rig, &event);
    core_action_t *adopt = rig_last(&rig, CORE_ACTION_JOBS_ADOPT);
    assert_int_equal(adopt->adopt.from.revision, 100);
    assert_int_equal(adopt->adopt.to.revision, 200);
    op = adopt->op;
    rig_hello(&rig, rig_link(&rig), epoch, 1024);
    const uint32_t ids[] = {A, A, A, A, A, A, A, A};
    rig_output(&rig, rig_link(&rig), item_id(0), 1, 0, ids, 8);
    rig_end(&rig, rig_link(&rig), item_id(0), 1,
            SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_COMPLETE), 0);
    rig_jobs_done(&rig, op, JOBS_OK, 0);
    rig_pass(&rig, 1000);
    assert_int_equal(rig_last(&rig, CORE_ACTION_JOBS_COMPLETE)->item.process.revision, 200);
    rig_stop(&rig);
}

static void test_an_item_with_three_deaths_fails_unrun(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    (void)epoch;
    rig_claimed(&rig, op, 0, 4, 3);
    core_action_t *fail_action = rig_last(&rig, CORE_ACTION_JOBS_FAIL);
    assert_non_null(fail_action);
    assert_string_equal(fail_action->item.result.error_code, "poisoned");
    assert_int_equal(rig_admits(&rig, NULL), 0);
    rig_stop(&rig);
}

static void test_items_of_a_cancelled_job_stop_and_are_given_back(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch, op = ready(&rig, &epoch);
    rig_claimed(&rig, op, 0, 1, 0);
    rig_hello(&rig, rig_link(&rig), epoch, 1024);
    rig_pass(&rig, 1500);
    core_action_t *poll = rig_last(&rig, CORE_ACTION_JOBS_POLL);
    assert_non_null(poll);
    const core_job_state_t states[] = {{"job", JOBS_STATE_CANCELLED, 5}};
    core_event_t event = {.kind = CORE_EVENT_JOB_STATES};
    event.job_states.op = poll->op;
    event.job_states.states = states;
    event.job_states.n_states = 1;
    rig_event(&rig, &event);
    assert_int_equal(rig_cancels(&rig), 1);
    assert_int_equal(rig_count(&rig, CORE_ACTION_JOBS_RELEASE), 1);
    rig_stop(&rig);
}

/* A claim's answer: one item each of so many new jobs, which fail and wait for their commit. */
static void claimed_of_new_jobs(rig_t *rig, unsigned *job, unsigned n)
{
    static core_claimed_t items[CORE_CLAIM_MAX];
    static char names[CORE_CLAIM_MAX][16];
    assert_true(n <= CORE_CLAIM_MAX);
    for (unsigned i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "j%u", (*job)++);
        items[i] = (core_claimed_t){.ref = {names[i], 0, 1},
                                    .error_code = "invalid",
                                    .error_message = "it is not a request"};
    }
    core_event_t event = {.kind = CORE_EVENT_CLAIMED};
    event.claimed.op = rig_last(rig, CORE_ACTION_JOBS_CLAIM)->op;
    event.claimed.code = JOBS_OK;
    event.claimed.items = items;
    event.claimed.n_items = n;
    rig_event(rig, &event);
}

static void test_of_more_jobs_than_one_look_takes_each_is_looked_at(void **state)
{
    (void)state;
    rig_t rig;
    core_config_t config = {.items_max = 2000};
    uint64_t epoch;
    ready_with(&rig, &config, &epoch);
    unsigned n = 0;
    bool seen[2000] = {false};
    while (n < 1500)
        claimed_of_new_jobs(&rig, &n, rig_last(&rig, CORE_ACTION_JOBS_CLAIM)->claim.n);
    core_event_t first = {.kind = CORE_EVENT_JOB_STATES};
    if (rig_last(&rig, CORE_ACTION_JOBS_POLL))
        first.job_states.op = rig_last(&rig, CORE_ACTION_JOBS_POLL)->op;
    rig_event(&rig, &first);
    for (unsigned round = 0; round < 2; round++) {
        rig_clear(&rig);
        rig_pass(&rig, 1000);
        const core_action_t *poll = rig_last(&rig, CORE_ACTION_JOBS_POLL);
        assert_non_null(poll);
        assert_int_equal(poll->poll.n_jobs, 1000);
        for (size_t i = 0; i < poll->poll.n_jobs; i++)
            seen[strtoul(poll->poll.jobs[i].job + 1, NULL, 10)] = true;
        core_event_t answer = {.kind = CORE_EVENT_JOB_STATES};
        answer.job_states.op = poll->op;
        answer.job_states.code = JOBS_OK;
        rig_event(&rig, &answer);
    }
    for (unsigned i = 0; i < n; i++)
        assert_true(seen[i]);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_claim_without_an_answer_is_repeated_with_its_nonce),
        cmocka_unit_test(test_a_result_is_committed_until_the_store_answers),
        cmocka_unit_test(test_with_redis_away_an_item_runs_on_and_commits_when_it_is_back),
        cmocka_unit_test(test_items_are_claimed_only_against_credit_that_nobody_waits_for),
        cmocka_unit_test(test_a_claim_that_is_not_known_here_is_given_back),
        cmocka_unit_test(test_a_new_process_adopts_before_it_writes),
        cmocka_unit_test(test_an_item_with_three_deaths_fails_unrun),
        cmocka_unit_test(test_items_of_a_cancelled_job_stop_and_are_given_back),
        cmocka_unit_test(test_of_more_jobs_than_one_look_takes_each_is_looked_at),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
