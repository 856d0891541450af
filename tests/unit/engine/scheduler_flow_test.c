/* What coordinators see of the scheduler: attaching, taking over, ends, credit, slow readers, time.
 */
#include <stdio.h>
#include <string.h>

#include "scheduler_rig.h"

static uint32_t admitted_from_n;
static uint64_t admitted_owner;

static void attach_again(admission_t *admission)
{
    admission->from_n = admitted_from_n;
    admission->owner = admitted_owner;
    admission->attach_only = true;
}

static void test_a_known_sequence_is_attached_to_from_any_position(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 100, NULL);
    for (int i = 0; i < 70; i++)
        rig_step(rig);
    assert_int_equal(q->n_ids, 70);
    /* Another coordinator takes it over from position 5 and sees the rest, in order, once. */
    uint32_t first = rig->stream;
    rig->stream = scheduler_stream_open(rig->s, rig->now_ms);
    admitted_owner = 2;
    admitted_from_n = q->n_ids = 5;
    rig_admit(rig, "s", 10, 0, 100, attach_again);
    sequence_output_t out;
    assert_true(scheduler_output(rig->s, first, &out));
    assert_int_equal(out.end, END_SUPERSEDED);
    assert_int_equal(out.owner, 1);
    assert_false(scheduler_output(rig->s, first, &out));
    assert_true(scheduler_output(rig->s, rig->stream, &out));
    assert_int_equal(out.first_position, 5);
    assert_int_equal(out.n_ids, SCHEDULER_OUTPUT_IDS_MAX);
    memcpy(q->ids + 5, out.ids, sizeof out.ids);
    q->n_ids = 5 + out.n_ids;
    rig_run(rig);
    rig_check_text(q);
    rig_free(rig);
}

static void test_a_lower_owner_is_superseded_and_changes_nothing(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    admitted_owner = 7;
    admitted_from_n = 0;
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 30, NULL);
    rig_admit(rig, "s", 10, 0, 30, attach_again);
    rig_step(rig);
    uint32_t owner_stream = rig->stream;
    rig->stream = scheduler_stream_open(rig->s, rig->now_ms);
    admitted_owner = 3;
    rig_admit(rig, "s", 10, 0, 30, attach_again);
    sequence_output_t out;
    assert_true(scheduler_output(rig->s, rig->stream, &out));
    assert_int_equal(out.end, END_SUPERSEDED);
    assert_int_equal(out.n_ids, 0);
    /* Its cancel does nothing either. */
    scheduler_cancel(rig->s, "s", 0, 3, rig->now_ms);
    rig->stream = owner_stream;
    rig_run(rig);
    rig_check_text(q);
    rig_free(rig);
}

static void test_an_unknown_sequence_is_refused_to_who_only_attaches(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    admitted_owner = 1;
    admitted_from_n = 0;
    rig_sequence_t *q = rig_admit(rig, "nobody", 10, 0, 30, attach_again);
    rig_take(rig, rig->stream);
    assert_int_equal(q->n_ends, 1);
    assert_int_equal(q->end, END_REFUSED);
    assert_string_equal(q->code, "unknown");
    rig_free(rig);
}

static const uint32_t *given_ids;
static uint32_t n_given;

static void give(admission_t *admission)
{
    admission->produced = given_ids;
    admission->n_produced = admission->from_n = n_given;
}

/* After a loss another replica goes on from the token log with the text it would have had. */
static void test_a_continuation_gives_the_same_text(void **state)
{
    (void)state;
    rig_t *first = rig_new(NULL), *second = rig_new(NULL);
    rig_sequence_t *whole = rig_admit(first, "s", 33, 4, 50, NULL);
    rig_run(first);
    rig_check_text(whole);
    for (n_given = 0; n_given <= 50; n_given += 7) {
        char name[8] = {'r', (char)('a' + n_given / 7), 0};
        given_ids = whole->ids;
        rig_sequence_t *rest = rig_admit(second, name, 33, 4, 50, give);
        memcpy(rest->ids, whole->ids, n_given * sizeof *rest->ids);
        rest->n_ids = n_given;
        rig_run(second);
        rig_check_text(rest);
    }
    /* Ids that already end the text end it at once, with nothing computed. */
    uint32_t complete[2] = {100, RIG_EOS};
    given_ids = complete;
    n_given = 2;
    rig_sequence_t *done = rig_admit(second, "done", 33, 4, 50, give);
    rig_take(second, second->stream);
    assert_int_equal(done->end, END_FINISHED);
    assert_int_equal(done->finish, FINISH_STOP);
    rig_free(first);
    rig_free(second);
}

static uint32_t stop_id;

static void stop_there(admission_t *admission)
{
    admission->stop_ids = &stop_id;
    admission->n_stop_ids = 1;
}

static void test_a_stop_id_ends_the_text_and_is_its_last_id(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *whole = rig_admit(rig, "whole", 12, 0, 40, NULL);
    rig_run(rig);
    stop_id = whole->ids[9];
    rig_sequence_t *q = rig_admit(rig, "stopped", 12, 0, 40, stop_there);
    rig_run(rig);
    assert_int_equal(q->finish, FINISH_STOP);
    assert_int_equal(q->n_ids, 10);
    assert_int_equal(whole->finish, FINISH_LENGTH);
    rig_free(rig);
}

static void absurd(admission_t *admission)
{
    admission->sampling.temperature = 3;
}

static void test_what_cannot_run_is_refused_with_one_end_and_a_reason(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *a = rig_admit(rig, "long", 500, 0, 13, NULL);
    rig_sequence_t *b = rig_admit(rig, "empty", 0, 0, 13, NULL);
    rig_sequence_t *c = rig_admit(rig, "absurd", 5, 0, 13, absurd);
    rig_sequence_t *d = rig_admit(rig, "fits", 500, 0, 12, NULL);
    rig_run(rig);
    assert_string_equal(a->code, "too_long");
    assert_string_equal(b->code, "invalid");
    assert_string_equal(c->code, "invalid");
    assert_int_equal(a->n_ends + b->n_ends + c->n_ends, 3);
    assert_true(a->end == END_REFUSED && b->end == END_REFUSED && c->end == END_REFUSED);
    rig_check_text(d);
    rig_free(rig);
}

static void few_sequences(scheduler_config_t *config)
{
    config->sequences_max = 4;
    config->batch_max = 2;
}

static void test_overload_is_refused_early(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_sequences);
    const char *names[] = {"a", "b", "c", "d", "e"};
    for (uint32_t i = 0; i < 5; i++)
        rig_admit(rig, names[i], 10, i, 10, NULL);
    rig_run(rig);
    for (uint32_t i = 0; i < 4; i++)
        rig_check_text(&rig->sequences[i]);
    assert_string_equal(rig_find(rig, "e")->code, "overloaded");
    rig_free(rig);
}

static void hurried(admission_t *admission)
{
    admission->deadline_ms = 5;
}

static void test_a_deadline_ends_a_sequence(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 100, hurried);
    rig_run(rig);
    assert_int_equal(q->end, END_CANCELLED);
    assert_string_equal(q->code, "deadline");
    assert_int_equal(q->n_ids, 5); /* a step is a millisecond here */
    rig_free(rig);
}

static void test_a_cancel_ends_once_also_while_the_step_is_in_flight(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 100, NULL);
    rig_step(rig);
    assert_true(rig_plan(rig));
    scheduler_cancel(rig->s, "s", 0, 1, rig->now_ms);
    scheduler_cancel(rig->s, "s", 0, 1, rig->now_ms);
    rig_run(rig);
    assert_int_equal(q->n_ends, 1);
    assert_int_equal(q->end, END_CANCELLED);
    assert_int_equal(q->n_ids, 1);
    rig_free(rig);
}

/* A stream that does not read holds nobody up and costs nothing; what it missed is still there. */
static void wanted_by_the_next(admission_t *admission)
{
    admission->owner = 2;
}

static void test_a_cancelled_sequence_that_is_wanted_again_starts_anew(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 30, NULL);
    rig_step(rig);
    scheduler_cancel(rig->s, "s", 0, 1, rig->now_ms);
    rig_take(rig, rig->stream);
    assert_int_equal(q->end, END_CANCELLED);
    /* The end before is kept for who attaches, but is no answer to who wants it computed. */
    q->n_ids = q->n_ends = 0;
    rig_admit(rig, "s", 10, 0, 30, wanted_by_the_next);
    rig_run(rig);
    assert_int_equal(q->end, END_FINISHED);
    rig_check_text(q);
    rig_free(rig);
}

static void test_a_slow_reader_gets_everything_later(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 300, NULL);
    while (rig_plan(rig))
        rig_return(rig);
    assert_int_equal(q->n_ids, 0);
    rig_take(rig, rig->stream);
    rig_check_text(q);
    rig_free(rig);
}

static void test_a_sequence_outlives_its_stream_and_an_ended_one_is_kept_30_s(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 50, NULL);
    rig_step(rig);
    scheduler_stream_close(rig->s, rig->stream, rig->now_ms);
    while (rig_plan(rig))
        rig_return(rig);
    rig->now_ms += 29000;
    scheduler_tick(rig->s, rig->now_ms);
    rig->stream = scheduler_stream_open(rig->s, rig->now_ms);
    admitted_owner = 2;
    admitted_from_n = 1;
    rig_admit(rig, "s", 10, 0, 50, attach_again);
    rig_take(rig, rig->stream);
    rig_check_text(q);
    /* Its end was sent; the time runs on and then nobody knows it any more. */
    rig->now_ms += 2000;
    scheduler_tick(rig->s, rig->now_ms);
    rig_admit(rig, "s", 10, 0, 50, attach_again);
    rig_take(rig, rig->stream);
    assert_string_equal(q->code, "unknown");
    rig_free(rig);
}

static void test_a_sequence_that_nobody_wants_is_cancelled(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 400, NULL);
    rig_step(rig);
    scheduler_stream_close(rig->s, rig->stream, rig->now_ms);
    rig->now_ms += 30000;
    scheduler_tick(rig->s, rig->now_ms);
    assert_false(rig_plan(rig));
    rig->stream = scheduler_stream_open(rig->s, rig->now_ms);
    admitted_owner = 1;
    admitted_from_n = 1;
    rig_admit(rig, "s", 10, 0, 400, attach_again);
    rig_take(rig, rig->stream);
    assert_int_equal(q->end, END_CANCELLED);
    rig_free(rig);
}

static void test_credit_is_what_a_coordinator_has_and_its_share_of_the_rest(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    uint64_t total = 64 * 16;
    assert_int_equal(scheduler_credit(rig->s, rig->stream), total);
    uint32_t other = scheduler_stream_open(rig->s, rig->now_ms);
    assert_int_equal(scheduler_credit(rig->s, rig->stream), total / 2);
    rig_admit(rig, "s", 100, 0, 100, NULL);
    assert_int_equal(scheduler_credit(rig->s, rig->stream), 200 + (total - 200) / 2);
    assert_int_equal(scheduler_credit(rig->s, other), (total - 200) / 2);
    rig_run(rig);
    assert_int_equal(scheduler_credit(rig->s, rig->stream), total / 2);
    /* With more admitted than fits there is nothing left to share. */
    rig_admit(rig, "a", 100, 1, 400, NULL);
    rig_admit(rig, "b", 100, 2, 400, NULL);
    rig_admit(rig, "c", 100, 3, 400, NULL);
    assert_int_equal(scheduler_credit(rig->s, rig->stream), 1500);
    assert_int_equal(scheduler_credit(rig->s, other), 0);
    rig_free(rig);
}

static void test_a_lost_replica_ends_everything_and_names_the_suspects(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_sequences);
    rig_admit(rig, "a", 10, 0, 20, NULL);
    rig_admit(rig, "b", 10, 1, 20, NULL);
    rig_admit(rig, "c", 10, 2, 20, NULL);
    rig_step(rig);
    assert_true(rig_plan(rig));
    char suspects[8][SESSION_BYTES];
    assert_int_equal(scheduler_lose(rig->s, "rank 1 died", rig->now_ms, suspects, 8), 2);
    assert_string_equal(suspects[0], "a");
    assert_string_equal(suspects[1], "b");
    rig_take(rig, rig->stream);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(rig->sequences[i].n_ends, 1);
        assert_int_equal(rig->sequences[i].end, END_REPLICA_LOST);
    }
    assert_int_equal(rig->sequences[0].n_ids, 1);
    rig_sequence_t *late = rig_admit(rig, "late", 10, 3, 20, NULL);
    rig_take(rig, rig->stream);
    assert_int_equal(late->end, END_REPLICA_LOST);
    rig_free(rig);
}

static void test_a_result_that_does_not_answer_the_plan_is_an_error(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    step_result_t result = {.step = 1};
    assert_int_equal(scheduler_step_done(rig->s, &result, 0), STATUS_INTERNAL);
    rig_admit(rig, "s", 10, 0, 20, NULL);
    assert_true(rig_plan(rig));
    assert_int_equal(scheduler_step_done(rig->s, &result, 0), STATUS_INTERNAL);
    rig_free(rig);
}

/* Values that are not finite may come from any of its blocks. */
static void test_blocks_of_a_sequence_that_failed_are_not_taken_by_a_later_prompt(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    rig_sequence_t *bad = rig_admit(rig, "bad", 40, 3, 20, NULL);
    rig_admit(rig, "other", 40, 4, 2, NULL);
    rig_step(rig);
    rig_step(rig);
    assert_true(rig_plan(rig));
    assert_string_equal(rig->entries[0].session, "bad");
    rig->drawn[0][0].failed = true;
    rig_return(rig);
    rig_run(rig);
    assert_int_equal(bad->end, END_REFUSED);
    assert_string_equal(bad->code, "numeric");
    assert_int_equal(bad->n_ids, 2);
    rig_sequence_t *again = rig_admit(rig, "again", 40, 3, 20, NULL);
    rig_sequence_t *like_other = rig_admit(rig, "like other", 40, 4, 2, NULL);
    rig_run(rig);
    assert_int_equal(again->n_cached, 0);
    assert_int_equal(like_other->n_cached, 32);
    rig_check_text(again);
    scheduler_load_t load;
    scheduler_load(rig->s, &load);
    assert_int_equal(load.kv_tokens_free, load.kv_tokens_total);
    rig_free(rig);
}

static void test_a_stream_that_reads_no_refusals_is_to_be_closed_and_costs_no_more(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    sequence_output_t out;
    admitted_owner = 1;
    admitted_from_n = 0;
    rig_sequence_t *q = rig_admit(rig, "s", 10, 0, 30, NULL);
    for (uint32_t i = 0; i < SCHEDULER_NOTICES_MAX; i++)
        rig_admit(rig, "nobody", 10, 0, 30, attach_again);
    assert_false(scheduler_stream_overrun(rig->s, rig->stream));
    rig_admit(rig, "nobody", 10, 0, 30, attach_again);
    rig_admit(rig, "nobody", 10, 0, 30, attach_again);
    assert_true(scheduler_stream_overrun(rig->s, rig->stream));
    uint32_t n = 0;
    while (scheduler_output(rig->s, rig->stream, &out))
        n += out.end == END_REFUSED;
    assert_int_equal(n, SCHEDULER_NOTICES_MAX);
    /* Its sequence goes on for whoever attaches next. */
    scheduler_stream_close(rig->s, rig->stream, rig->now_ms);
    rig->stream = scheduler_stream_open(rig->s, rig->now_ms);
    assert_false(scheduler_stream_overrun(rig->s, rig->stream));
    rig_admit(rig, "s", 10, 0, 30, attach_again);
    rig_run(rig);
    rig_check_text(q);
    rig_free(rig);
}

/* Four sequences at once, four times as many known: a reader that stands still is not served for
 * ever. */
static void test_ends_that_nobody_reads_are_bounded_too(void **state)
{
    (void)state;
    rig_t *rig = rig_new(few_sequences);
    char name[16];
    for (uint32_t i = 0; i < 17; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 10, i, 1, NULL);
        while (rig_plan(rig))
            rig_return(rig);
    }
    rig_take(rig, rig->stream);
    for (uint32_t i = 0; i < 16; i++)
        rig_check_text(&rig->sequences[i]);
    assert_string_equal(rig->sequences[16].code, "overloaded");
    rig_sequence_t *later = rig_admit(rig, "later", 10, 20, 3, NULL);
    rig_run(rig);
    rig_check_text(later);
    rig_free(rig);
}

static void test_many_deadlines_at_once_end_all_their_sequences_before_a_step(void **state)
{
    (void)state;
    rig_t *rig = rig_new(NULL);
    char name[16];
    for (uint32_t i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "s%u", i);
        rig_admit(rig, name, 10, i % 40, 100, hurried);
    }
    rig->now_ms += 5;
    assert_false(rig_plan(rig));
    rig_take(rig, rig->stream);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(rig->sequences[i].n_ends, 1);
        assert_string_equal(rig->sequences[i].code, "deadline");
    }
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_known_sequence_is_attached_to_from_any_position),
        cmocka_unit_test(test_a_lower_owner_is_superseded_and_changes_nothing),
        cmocka_unit_test(test_an_unknown_sequence_is_refused_to_who_only_attaches),
        cmocka_unit_test(test_a_continuation_gives_the_same_text),
        cmocka_unit_test(test_a_stop_id_ends_the_text_and_is_its_last_id),
        cmocka_unit_test(test_what_cannot_run_is_refused_with_one_end_and_a_reason),
        cmocka_unit_test(test_overload_is_refused_early),
        cmocka_unit_test(test_a_deadline_ends_a_sequence),
        cmocka_unit_test(test_a_cancel_ends_once_also_while_the_step_is_in_flight),
        cmocka_unit_test(test_a_cancelled_sequence_that_is_wanted_again_starts_anew),
        cmocka_unit_test(test_a_slow_reader_gets_everything_later),
        cmocka_unit_test(test_a_sequence_outlives_its_stream_and_an_ended_one_is_kept_30_s),
        cmocka_unit_test(test_a_sequence_that_nobody_wants_is_cancelled),
        cmocka_unit_test(test_credit_is_what_a_coordinator_has_and_its_share_of_the_rest),
        cmocka_unit_test(test_a_lost_replica_ends_everything_and_names_the_suspects),
        cmocka_unit_test(test_blocks_of_a_sequence_that_failed_are_not_taken_by_a_later_prompt),
        cmocka_unit_test(test_a_stream_that_reads_no_refusals_is_to_be_closed_and_costs_no_more),
        cmocka_unit_test(test_ends_that_nobody_reads_are_bounded_too),
        cmocka_unit_test(test_many_deadlines_at_once_end_all_their_sequences_before_a_step),
        cmocka_unit_test(test_a_result_that_does_not_answer_the_plan_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
