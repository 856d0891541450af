/* Sessions and dispatch: from a client's request to its text. */
#include "tests/unit/coordinator/core_rig.h"

#include <stdio.h>
#include <string.h>

enum { A = 0, S = 31, ST = 32, OP = 33, PB = 34 };

/* One replica with its link open for request '1' of client 1; its Admit is sent. */
static uint64_t running(rig_t *rig, uint32_t max_tokens, const char *stop, uint64_t *epoch_out)
{
    rig_start(rig, 1);
    uint64_t epoch = rig_replica(rig, 0, "h0", RIG_IDENTITY);
    rig_generate(rig, 1, '1', max_tokens, stop);
    uint64_t link = rig_link(rig);
    rig_hello(rig, link, epoch, 1024);
    if (epoch_out)
        *epoch_out = epoch;
    return link;
}

static void test_a_request_goes_to_the_leader_and_its_text_to_the_client(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t link = running(&rig, 2, "", NULL);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_string_equal(m->admit->session, rig_id('1'));
    assert_int_equal(m->admit->owner, 1);
    assert_true(m->admit->n_eos_ids >= 1);
    rig_free(m);
    rig_pass(&rig, 10); /* the pointer does not come: Started goes without it */
    assert_non_null(rig_last(&rig, CORE_ACTION_STARTED));
    assert_false(rig_last(&rig, CORE_ACTION_STARTED)->started.resumable);
    const uint32_t ids[] = {A, A};
    rig_output(&rig, link, rig_id('1'), 1, 0, ids, 2);
    rig_end(&rig, link, rig_id('1'), 1, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    core_action_t *out = rig_last(&rig, CORE_ACTION_OUTPUT);
    assert_int_equal(out->output.n, 2);
    assert_true(out->output.ended);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_OK);
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 1);
    rig_stop(&rig);
}

static void test_one_output_is_under_way_and_the_next_carries_all_that_came(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t link = running(&rig, 20, "", NULL);
    rig_pass(&rig, 10);
    const uint32_t ids[] = {A, A, A};
    for (uint32_t i = 0; i < 3; i++)
        rig_output(&rig, link, rig_id('1'), 1, i * 3, ids, 3);
    assert_int_equal(rig_count(&rig, CORE_ACTION_OUTPUT), 1);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    assert_int_equal(rig_count(&rig, CORE_ACTION_OUTPUT), 2);
    core_action_t *out = rig_last(&rig, CORE_ACTION_OUTPUT);
    assert_int_equal(out->output.n_ids, 6);
    assert_int_equal(out->output.n, 9);
    rig_stop(&rig);
}

static void test_a_stop_string_cancels_at_the_leader_and_hides_later_ids(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t link = running(&rig, 20, "STOPP!", NULL);
    rig_pass(&rig, 10);
    const uint32_t ids[] = {A, ST, OP, PB, A, A};
    rig_output(&rig, link, rig_id('1'), 1, 0, ids, 6);
    core_action_t *out = rig_last(&rig, CORE_ACTION_OUTPUT);
    assert_int_equal(out->output.n, 4);
    assert_int_equal(out->output.completion_tokens, 4);
    assert_int_equal(out->output.finish_reason, SHOAL__V1__FINISH_REASON__FINISH_REASON_STOP);
    assert_int_equal(out->output.text_size, 1);
    assert_int_equal(rig_cancels(&rig), 1);
    rig_stop(&rig);
}

static void test_ids_that_are_missing_are_asked_for_again_and_known_ones_skipped(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t link = running(&rig, 20, "", NULL);
    rig_pass(&rig, 10);
    const uint32_t ids[] = {A, A, A};
    rig_output(&rig, link, rig_id('1'), 1, 0, ids, 3);
    rig_clear(&rig);
    rig_output(&rig, link, rig_id('1'), 1, 5, ids, 3);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_int_equal(m->admit->from_n, 3);
    rig_free(m);
    rig_output(&rig, link, rig_id('1'), 1, 1, ids, 3);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    assert_int_equal(rig_last(&rig, CORE_ACTION_OUTPUT)->output.n, 4);
    rig_stop(&rig);
}

static void test_a_disconnect_is_no_cancel_until_detach_ms(void **state)
{
    (void)state;
    rig_t rig;
    running(&rig, 20, "", NULL);
    rig_pass(&rig, 10);
    rig_client(&rig, CORE_EVENT_CLIENT_GONE, 1);
    rig_pass(&rig, 9900);
    assert_int_equal(rig_cancels(&rig), 0);
    rig_pass(&rig, 200);
    assert_int_equal(rig_cancels(&rig), 1);
    rig_stop(&rig);
}

static void test_a_client_goes_on_from_any_n(void **state)
{
    (void)state;
    const uint32_t ids[] = {A, S, A, 27, 28, 29, 30, A}; /* "S" and the emoji hold text back */
    for (uint32_t n = 0; n <= 8; n++) {
        rig_t rig;
        uint64_t link = running(&rig, 20, "STOP!", NULL);
        rig_pass(&rig, 10);
        rig_client(&rig, CORE_EVENT_CLIENT_GONE, 1);
        rig_output(&rig, link, rig_id('1'), 1, 0, ids, n);
        rig_resume(&rig, 2, '1', 0);
        size_t size = 0;
        if (n)
            size = rig_last(&rig, CORE_ACTION_OUTPUT)->output.text_size;
        rig_client(&rig, CORE_EVENT_CLIENT_GONE, 2);
        rig_output(&rig, link, rig_id('1'), 1, n, ids + n, 8 - n);
        rig_clear(&rig);
        rig_resume(&rig, 3, '1', n);
        assert_non_null(rig_last(&rig, CORE_ACTION_STARTED));
        if (n < 8) {
            assert_int_equal(rig_last(&rig, CORE_ACTION_OUTPUT)->output.n_ids, 8 - n);
            size += rig_last(&rig, CORE_ACTION_OUTPUT)->output.text_size;
        }
        assert_int_equal(size, strlen("aSa") + 4 + 1);
        rig_stop(&rig);
    }
}

static void test_without_credit_a_request_waits_and_is_refused_with_a_retry_time(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t epoch;
    uint64_t link = running(&rig, 60, "", &epoch);
    (void)link;
    rig_hello(&rig, link, epoch, 80); /* room for one */
    rig_clear(&rig);
    rig_generate(&rig, 2, '2', 60, "");
    assert_int_equal(rig_admits(&rig, NULL), 0);
    rig_pass(&rig, 9900);
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 0);
    rig_pass(&rig, 200);
    core_action_t *end = rig_last(&rig, CORE_ACTION_END);
    assert_int_equal(end->end.status, STATUS_EXHAUSTED);
    assert_true(end->end.retry_after_ms > 0);
    rig_stop(&rig);
}

static void test_the_waiting_room_is_bounded_in_tokens(void **state)
{
    (void)state;
    rig_t rig;
    rig_start_with(&rig, 1, 300); /* no replica: everything waits, up to 300 tokens */
    rig_generate(&rig, 1, '1', 120, "");
    rig_generate(&rig, 2, '2', 120, "");
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 0);
    rig_generate(&rig, 3, '3', 120, "");
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 1);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.client, 3);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_EXHAUSTED);
    rig_stop(&rig);
}

static void test_a_higher_priority_goes_first(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    rig_generate_for(&rig, 1, '1', 30, 0);
    rig_generate_for(&rig, 2, '2', 30, -5);
    rig_generate_for(&rig, 3, '3', 30, 9);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_hello(&rig, rig_link(&rig), epoch, 60); /* room for one */
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_string_equal(m->admit->session, rig_id('3'));
    rig_free(m);
    rig_stop(&rig);
}

static void test_a_leader_of_another_epoch_is_not_served(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 20, "");
    rig_hello(&rig, rig_link(&rig), epoch - 1, 1024);
    assert_int_equal(rig_admits(&rig, NULL), 0);
    assert_int_equal(rig_count(&rig, CORE_ACTION_LINK_CLOSE), 1);
    rig_stop(&rig);
}

static void test_equal_prefixes_go_to_one_replica(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 3);
    uint64_t epochs[3];
    for (uint32_t i = 0; i < 3; i++)
        epochs[i] = rig_replica(&rig, i, "h0", RIG_IDENTITY);
    rig_generate(&rig, 1, '1', 10, "");
    uint64_t link = rig_link(&rig);
    for (uint32_t i = 0; i < 3; i++) /* only the slot's own epoch is taken */
        if (rig_count(&rig, CORE_ACTION_LINK_CLOSE) == 0 && rig_admits(&rig, NULL) == 0) {
            char endpoint[16];
            snprintf(endpoint, sizeof endpoint, "h0:%u", i);
            if (strcmp(rig_last(&rig, CORE_ACTION_LINK_OPEN)->link_open.endpoint, endpoint) == 0)
                rig_hello(&rig, link, epochs[i], 1024);
        }
    assert_int_equal(rig_admits(&rig, NULL), 1);
    rig_generate(&rig, 2, '2', 10, "");
    assert_int_equal(rig_admits(&rig, NULL), 2);
    assert_int_equal(rig_count(&rig, CORE_ACTION_LINK_OPEN), 1);
    rig_stop(&rig);
}

static void cancel(rig_t *rig, uint64_t client, char digit, bool take)
{
    core_event_t event = {.kind = CORE_EVENT_CANCEL};
    event.cancel.client = client;
    event.cancel.id = rig_id(digit);
    event.cancel.take = take;
    rig_event(rig, &event);
}

/* A request of another coordinator, which is dead: client 9 goes on reading it here after 2 ids, or
 * client 8 cancels it here, or does so while it is on its way for the other. The leader then tells
 * what it was admitted with and its first 3 ids. */
static void taken_over(rig_t *out_rig, bool read, bool cancelled)
{
    rig_t rig, other;
    /* The other coordinator writes the pointer; this one reads it. */
    (void)running(&other, 20, "STOP!", NULL);
    core_action_t *put = rig_last(&other, CORE_ACTION_POINTER_PUT);
    assert_non_null(put);
    assert_true(put->pointer.pointer_bytes <= JOBS_POINTER_BYTES_MAX);
    Shoal__Worker__V1__CoordinatorMessage *admitted = NULL;
    rig_admits(&other, &admitted);

    rig_start(&rig, 1);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    if (read)
        rig_resume(&rig, 9, '1', 2);
    else
        cancel(&rig, 8, '1', true);
    core_event_t done = {.kind = CORE_EVENT_POINTER_DONE};
    done.pointer_done.op = rig_last(&rig, CORE_ACTION_POINTER_GET)->op;
    done.pointer_done.number = 1;
    done.pointer_done.pointer = put->pointer.pointer;
    done.pointer_done.pointer_bytes = put->pointer.pointer_bytes;
    rig_event(&rig, &done);
    core_action_t *take = rig_last(&rig, CORE_ACTION_POINTER_TAKE);
    assert_int_equal(take->pointer.owner, 1);
    done.pointer_done.op = take->op;
    done.pointer_done.number = 2;
    rig_event(&rig, &done);
    rig_hello(&rig, rig_link(&rig), epoch, 1024);
    rig_pass(&rig, 50);
    Shoal__Worker__V1__CoordinatorMessage *m = NULL;
    assert_int_equal(rig_admits(&rig, &m), 1);
    assert_true(m->admit->attach_only);
    assert_int_equal(m->admit->owner, 2);
    rig_free(m);
    if (read && cancelled)
        cancel(&rig, 8, '1', false);

    const uint32_t ids[] = {A, S, A};
    Shoal__Worker__V1__SequenceOutput out = SHOAL__WORKER__V1__SEQUENCE_OUTPUT__INIT;
    out.session = (char *)(uintptr_t)rig_id('1');
    out.owner = 2;
    out.ids = (uint32_t *)(uintptr_t)ids;
    out.n_ids = 3;
    out.admitted = admitted->admit;
    Shoal__Worker__V1__SequenceOutput *list[] = {&out};
    Shoal__Worker__V1__StepOutput s = SHOAL__WORKER__V1__STEP_OUTPUT__INIT;
    s.credit_tokens = 1024;
    s.n_sequences = 1;
    s.sequences = list;
    Shoal__Worker__V1__LeaderMessage lm = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    lm.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP;
    lm.step = &s;
    uint8_t bytes[4096];
    core_event_t event = {.kind = CORE_EVENT_LINK_MESSAGE};
    event.link_message.link = rig_link(&rig);
    event.link_message.bytes = bytes;
    event.link_message.size = shoal__worker__v1__leader_message__pack(&lm, bytes);
    rig_event(&rig, &event);
    rig_free(admitted);
    rig_stop(&other);
    *out_rig = rig;
}

static void test_a_session_of_a_dead_coordinator_is_taken_over_whole(void **state)
{
    (void)state;
    rig_t rig;
    taken_over(&rig, true, false);
    assert_int_equal(rig_last(&rig, CORE_ACTION_STARTED)->started.seed, 5);
    core_action_t *output = rig_last(&rig, CORE_ACTION_OUTPUT);
    assert_int_equal(output->output.n, 3);
    assert_int_equal(output->output.n_ids, 1);
    /* "S" was held back at n = 2, so it comes now. */
    assert_int_equal(output->output.text_size, 2);
    assert_memory_equal(output->output.text, "Sa", 2);
    rig_stop(&rig);
}

static void test_draining_refuses_and_ends_when_all_is_done(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t link = running(&rig, 1, "", NULL);
    rig_pass(&rig, 10);
    core_event_t drain = {.kind = CORE_EVENT_DRAIN};
    rig_event(&rig, &drain);
    rig_generate(&rig, 2, '2', 10, "");
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_UNREACHABLE);
    rig_pass(&rig, 1000);
    assert_int_equal(rig_count(&rig, CORE_ACTION_DRAINED), 0);
    const uint32_t ids[] = {A};
    rig_output(&rig, link, rig_id('1'), 1, 0, ids, 1);
    rig_end(&rig, link, rig_id('1'), 1, SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 1);
    rig_pass(&rig, 200);
    assert_int_equal(rig_count(&rig, CORE_ACTION_DRAINED), 1);
    rig_stop(&rig);
}

static void test_a_request_of_a_dead_coordinator_is_cancelled_where_the_client_asks(void **state)
{
    (void)state;
    rig_t rig;
    taken_over(&rig, false, true);
    core_action_t *end = rig_last(&rig, CORE_ACTION_END);
    assert_non_null(end);
    assert_int_equal(end->end.client, 8);
    assert_int_equal(end->end.status, STATUS_OK);
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 1);
    assert_int_equal(rig_cancels(&rig), 1); /* the leader stops */
    /* Whoever reads it on sees its end. */
    rig_resume(&rig, 9, '1', 3);
    assert_true(rig_last(&rig, CORE_ACTION_OUTPUT)->output.ended);
    assert_string_equal(rig_last(&rig, CORE_ACTION_OUTPUT)->output.error_code, "cancelled");
    rig_resume(&rig, 10, '1', 7); /* it had read more than came here */
    assert_true(rig_last(&rig, CORE_ACTION_OUTPUT)->output.ended);
    assert_int_equal(rig_last(&rig, CORE_ACTION_OUTPUT)->output.n, 7);
    assert_int_equal(rig_last(&rig, CORE_ACTION_OUTPUT)->output.n_ids, 0);
    cancel(&rig, 7, '1', true);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_STALE);
    rig_stop(&rig);
}

static void test_a_cancel_of_what_is_being_taken_over_ends_it_when_it_is_here(void **state)
{
    (void)state;
    rig_t rig;
    taken_over(&rig, true, true);
    core_action_t *end = rig_last(&rig, CORE_ACTION_END);
    assert_non_null(end);
    assert_int_equal(end->end.client, 8);
    assert_int_equal(end->end.status, STATUS_OK);
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 1);
    assert_int_equal(rig_cancels(&rig), 1);
    /* Its reader gets what came, and then its end. */
    core_action_t *output = rig_last(&rig, CORE_ACTION_OUTPUT);
    assert_non_null(output);
    assert_int_equal(output->output.client, 9);
    assert_int_equal(output->output.n, 3);
    rig_client(&rig, CORE_EVENT_CLIENT_WRITABLE, 9);
    assert_true(rig_last(&rig, CORE_ACTION_OUTPUT)->output.ended);
    assert_string_equal(rig_last(&rig, CORE_ACTION_OUTPUT)->output.error_code, "cancelled");
    rig_stop(&rig);
}

static void test_a_cancel_that_cannot_be_done_is_not_said_to_be(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    rig_resume(&rig, 9, '1', 2); /* its pointer is being read … */
    cancel(&rig, 8, '1', false);
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 0);
    cancel(&rig, 7, '1', true);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.client, 7);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_UNREACHABLE);
    core_event_t done = {.kind = CORE_EVENT_POINTER_DONE};
    done.pointer_done.op = rig_last(&rig, CORE_ACTION_POINTER_GET)->op;
    done.pointer_done.code = JOBS_NOT_FOUND;
    rig_clear(&rig);
    rig_event(&rig, &done); /* … and there is none: reader and canceller hear that */
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 2);
    for (size_t i = 0; i < rig.actions.n; i++)
        if (rig.actions.items[i].kind == CORE_ACTION_END)
            assert_int_equal(rig.actions.items[i].end.status, STATUS_NOT_FOUND);
    rig_stop(&rig);
}

static void test_a_cancel_that_finds_no_pointer_says_so_once(void **state)
{
    (void)state;
    rig_t rig;
    rig_start(&rig, 1);
    rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    cancel(&rig, 8, '1', false);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_NOT_FOUND);
    assert_int_equal(rig_count(&rig, CORE_ACTION_POINTER_GET), 0);
    rig_clear(&rig);
    cancel(&rig, 8, '1', true);
    core_event_t done = {.kind = CORE_EVENT_POINTER_DONE};
    done.pointer_done.op = rig_last(&rig, CORE_ACTION_POINTER_GET)->op;
    done.pointer_done.code = JOBS_NOT_FOUND;
    rig_event(&rig, &done);
    assert_int_equal(rig_last(&rig, CORE_ACTION_END)->end.status, STATUS_NOT_FOUND);
    assert_int_equal(rig_count(&rig, CORE_ACTION_END), 1);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_request_goes_to_the_leader_and_its_text_to_the_client),
        cmocka_unit_test(test_one_output_is_under_way_and_the_next_carries_all_that_came),
        cmocka_unit_test(test_a_stop_string_cancels_at_the_leader_and_hides_later_ids),
        cmocka_unit_test(test_ids_that_are_missing_are_asked_for_again_and_known_ones_skipped),
        cmocka_unit_test(test_a_disconnect_is_no_cancel_until_detach_ms),
        cmocka_unit_test(test_a_client_goes_on_from_any_n),
        cmocka_unit_test(test_without_credit_a_request_waits_and_is_refused_with_a_retry_time),
        cmocka_unit_test(test_the_waiting_room_is_bounded_in_tokens),
        cmocka_unit_test(test_a_higher_priority_goes_first),
        cmocka_unit_test(test_a_leader_of_another_epoch_is_not_served),
        cmocka_unit_test(test_equal_prefixes_go_to_one_replica),
        cmocka_unit_test(test_a_session_of_a_dead_coordinator_is_taken_over_whole),
        cmocka_unit_test(test_draining_refuses_and_ends_when_all_is_done),
        cmocka_unit_test(test_a_request_of_a_dead_coordinator_is_cancelled_where_the_client_asks),
        cmocka_unit_test(test_a_cancel_of_what_is_being_taken_over_ends_it_when_it_is_here),
        cmocka_unit_test(test_a_cancel_that_cannot_be_done_is_not_said_to_be),
        cmocka_unit_test(test_a_cancel_that_finds_no_pointer_says_so_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
