/* What happens to sequences whose replica is gone: they go on, but not with what kills ranks. */
#include "tests/unit/coordinator/core_rig.h"

#include <string.h>

enum { A = 0 };

static uint64_t open_for(rig_t *rig, uint64_t epoch)
{
    uint64_t link = rig_link(rig);
    rig_hello(rig, link, epoch, 1024);
    return link;
}

static void test_a_lost_replica_continues_with_its_ids_on_another(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 2);
    uint64_t first = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 20, "");
    uint64_t link = open_for(&rig, first);
    const uint32_t ids[] = {A, A, A};
    rig_output(&rig, link, rig_id('1'), 1, 0, ids, 3);
    uint64_t second = rig_replica(&rig, 1, "h1", RIG_IDENTITY);
    rig_clear(&rig);
    rig_break(&rig, link);
    rig_pass(&rig, 600);
    open_for(&rig, second);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_int_equal(m->admit->n_produced, 3);
    assert_int_equal(m->admit->from_n, 3);
    assert_false(m->admit->solo);
    rig_free(m);
    rig_stop(&rig);
}

static void test_a_continuation_never_runs_under_another_text_identity(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 2);
    uint64_t first = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 20, "");
    uint64_t link = open_for(&rig, first);
    rig_replica(&rig, 1, "h1", "identity-b");
    rig_clear(&rig);
    rig_break(&rig, link);
    rig_pass(&rig, 150);
    rig_delete(&rig, "replicas/toy/0/active");
    rig_pass(&rig, 5000);
    assert_int_equal(rig_admits(&rig, NULL), 0);
    rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    open_for(&rig, rig.revision - 1);
    rig_pass(&rig, 300);
    assert_int_equal(rig_admits(&rig, NULL), 1);
    rig_stop(&rig);
}

/* Whether the client was told that its request is poisoned, since rig_clear. */
static bool poisoned(const rig_t *rig, uint64_t client)
{
    for (size_t i = 0; i < rig->actions.n; i++) {
        const core_action_t *a = &rig->actions.items[i];
        if (a->kind == CORE_ACTION_OUTPUT && a->output.client == client && a->output.error_code &&
            strcmp(a->output.error_code, "poisoned") == 0)
            return true;
    }
    return false;
}

/* Requests '1' and '2' run on one replica, which dies by its own doing; it forms again. */
static uint64_t after_a_crash(rig_t *rig, const char *named)
{
    rig_start(rig, 1);
    uint64_t epoch = rig_replica(rig, 0, "h0", RIG_IDENTITY);
    rig_generate(rig, 1, '1', 20, "");
    rig_generate(rig, 2, '2', 20, "");
    uint64_t link = open_for(rig, epoch);
    assert_int_equal(rig_admits(rig, NULL), 2);
    rig_break(rig, link);
    rig_failure(rig, 0, epoch, true, named);
    rig_pass(rig, 10);
    rig_clear(rig);
    epoch = rig_replica(rig, 0, "h0", RIG_IDENTITY);
    rig_pass(rig, 600);
    open_for(rig, epoch);
    rig_pass(rig, 600);
    return epoch;
}

static void test_suspects_of_a_crash_run_alone_one_after_the_other(void **state)
{
    (void)state;
    rig_t rig;
    after_a_crash(&rig, NULL);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_true(m->admit->solo);
    char session[CORE_ID_SIZE];
    strcpy(session, m->admit->session);
    rig_free(m);
    rig_clear(&rig);
    rig_generate(&rig, 3, '3', 20, ""); /* nothing else is admitted beside it */
    assert_int_equal(rig_admits(&rig, NULL), 0);
    core_event_t event = {.kind = CORE_EVENT_CANCEL};
    event.cancel.client = 50;
    event.cancel.id = session;
    rig_event(&rig, &event);
    m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1); /* the other suspect's turn, before the new one's */
    assert_true(m->admit->solo);
    rig_free(m);
    rig_stop(&rig);
}

static void test_a_suspect_that_passes_the_point_is_one_no_more(void **state)
{
    (void)state;
    rig_t rig;
    after_a_crash(&rig, NULL);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    char session[CORE_ID_SIZE];
    strcpy(session, m->admit->session);
    rig_free(m);
    uint64_t link = rig_link(&rig);
    rig_clear(&rig);
    const uint32_t ids[8] = {A, A, A, A, A, A, A, A};
    rig_output(&rig, link, session, 1, 0, ids, 7);
    assert_int_equal(rig_admits(&rig, NULL), 0);
    rig_output(&rig, link, session, 1, 7, ids, 1);
    m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1); /* the leader is told */
    assert_string_equal(m->admit->session, session);
    assert_false(m->admit->solo);
    rig_free(m);
    rig_stop(&rig);
}

static void test_a_death_alone_ends_poisoned(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch = after_a_crash(&rig, rig_id('2'));
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    /* The other one is no suspect; when it has ended, '2' has its turn alone. */
    rig_end(&rig, rig_link(&rig), rig_id('1'), 1,
            SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 2);
    assert_string_equal(m->admit->session, rig_id('2'));
    assert_true(m->admit->solo);
    rig_free(m);
    rig_failure(&rig, 0, epoch, true, rig_id('2'));
    rig_pass(&rig, 20);
    assert_true(poisoned(&rig, 2));
    for (size_t i = 0; i < rig.actions.n; i++) {
        const core_action_t *a = &rig.actions.items[i];
        if (a->kind == CORE_ACTION_OUTPUT && a->output.client == 1)
            assert_null(a->output.error_code);
    }
    rig_stop(&rig);
}

/* The watch of etcd lags: the first loss looks like a cut stream, and its record comes when the
 * sequence has been lost again. Two deaths named it, the third is nobody else's either. */
static void test_a_record_that_comes_while_it_is_lost_again_counts(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 2);
    uint64_t first = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 20, "");
    rig_break(&rig, open_for(&rig, first));
    rig_delete(&rig, "replicas/toy/0/active");
    uint64_t second = rig_replica(&rig, 1, "h1", RIG_IDENTITY);
    rig_clear(&rig);
    rig_pass(&rig, 600);
    uint64_t link = open_for(&rig, second);
    assert_int_equal(rig_admits(&rig, NULL), 1);
    rig_break(&rig, link);
    rig_failure(&rig, 0, first, true, rig_id('1'));
    rig_failure(&rig, 1, second, true, rig_id('1'));
    rig_pass(&rig, 20);
    assert_false(poisoned(&rig, 1));
    rig_clear(&rig);
    uint64_t third = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_pass(&rig, 300);
    open_for(&rig, third);
    rig_pass(&rig, 300);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_true(m->admit->solo);
    rig_free(m);
    rig_failure(&rig, 0, third, true, NULL);
    rig_pass(&rig, 20);
    assert_true(poisoned(&rig, 1));
    rig_stop(&rig);
}

static void test_a_suspect_waits_for_the_record_that_a_lagging_watch_still_owes(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 20, "");
    rig_break(&rig, open_for(&rig, epoch));
    rig_failure(&rig, 0, epoch, true, NULL);
    rig_pass(&rig, 10);
    rig_clear(&rig);
    epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_pass(&rig, 300);
    uint64_t link = open_for(&rig, epoch);
    rig_pass(&rig, 300);
    assert_int_equal(rig_admits(&rig, NULL), 1);
    rig_clear(&rig);
    rig_break(&rig, link);
    rig_pass(&rig, 2400);
    assert_int_equal(rig_count(&rig, CORE_ACTION_LINK_OPEN), 0); /* it goes nowhere yet */
    rig_failure(&rig, 0, epoch, true, rig_id('1'));
    rig_pass(&rig, 20);
    assert_true(poisoned(&rig, 1));
    rig_stop(&rig);
}

static void test_a_death_that_is_not_its_own_doing_makes_no_suspects(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 20, "");
    uint64_t link = open_for(&rig, epoch);
    for (int i = 0; i < 5; i++) {
        rig_clear(&rig);
        rig_break(&rig, link);
        rig_failure(&rig, 0, epoch, false, NULL);
        epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
        rig_pass(&rig, 400);
        link = open_for(&rig, epoch);
        rig_pass(&rig, 300);
        Shoal__Worker__V1__CoordinatorMessage *m = NULL;
        assert_int_equal(rig_admits(&rig, &m), 1);
        assert_false(m->admit->solo);
        rig_free(m);
    }
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_lost_replica_continues_with_its_ids_on_another),
        cmocka_unit_test(test_a_continuation_never_runs_under_another_text_identity),
        cmocka_unit_test(test_suspects_of_a_crash_run_alone_one_after_the_other),
        cmocka_unit_test(test_a_suspect_that_passes_the_point_is_one_no_more),
        cmocka_unit_test(test_a_death_alone_ends_poisoned),
        cmocka_unit_test(test_a_record_that_comes_while_it_is_lost_again_counts),
        cmocka_unit_test(test_a_suspect_waits_for_the_record_that_a_lagging_watch_still_owes),
        cmocka_unit_test(test_a_death_that_is_not_its_own_doing_makes_no_suspects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
