/* What a link carries: long logs after a broken stream, a part of them at a time. */
#include "tests/unit/coordinator/core_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { SEND_QUEUE_BYTES = 8 << 20, LONG = 400000, N = 24 };
static const uint64_t credit = 1u << 30;

static const char *id_of(unsigned n)
{
    static char id[CORE_ID_SIZE];
    snprintf(id, sizeof id, "%032x", n);
    return id;
}

static void generate(rig_t *rig, unsigned n, size_t n_prompt)
{
    Shoal__V1__Sampling sampling;
    request_t request;
    char *stop_at;
    core_event_t event = {.kind = CORE_EVENT_GENERATE};
    request_draw(5, false, &request);
    request.choices = 1;
    request.max_tokens = 16;
    request.stop[0] = 0;
    request_fill(&request, &sampling, &stop_at, &event.generate.request);
    uint32_t *prompt = calloc(n_prompt, sizeof *prompt);
    assert_non_null(prompt);
    for (size_t i = 0; i < n_prompt; i++)
        prompt[i] = SIM_VOCAB - 1; /* two bytes in a message */
    event.generate.request.prompt = prompt;
    event.generate.request.n_prompt = n_prompt;
    memcpy(event.generate.request.id, id_of(n), CORE_ID_SIZE);
    event.generate.client = n;
    rig_event(rig, &event);
    free(prompt);
}

/* One new id of request n at position `first`. */
static void output(rig_t *rig, uint64_t link, unsigned n, uint32_t first)
{
    uint32_t id = 0;
    char session[CORE_ID_SIZE];
    memcpy(session, id_of(n), sizeof session);
    Shoal__Worker__V1__SequenceOutput out = SHOAL__WORKER__V1__SEQUENCE_OUTPUT__INIT, *list = &out;
    out.session = session;
    out.owner = 1;
    out.first_position = first;
    out.ids = &id;
    out.n_ids = 1;
    Shoal__Worker__V1__StepOutput step = SHOAL__WORKER__V1__STEP_OUTPUT__INIT;
    step.credit_tokens = credit;
    step.n_sequences = 1;
    step.sequences = &list;
    Shoal__Worker__V1__LeaderMessage m = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP;
    m.step = &step;
    uint8_t bytes[256];
    core_event_t event = {.kind = CORE_EVENT_LINK_MESSAGE};
    event.link_message.link = link;
    event.link_message.bytes = bytes;
    event.link_message.size = shoal__worker__v1__leader_message__pack(&m, bytes);
    rig_event(rig, &event);
}

/* Marks whose Admits went out since rig_clear; returns the bytes that went to leaders. */
static size_t sent(const rig_t *rig, bool admitted[N + 1])
{
    size_t bytes = 0;
    for (size_t i = 0; i < rig->actions.n; i++) {
        const core_action_t *a = &rig->actions.items[i];
        if (a->kind != CORE_ACTION_LINK_SEND)
            continue;
        bytes += a->link_send.size;
        Shoal__Worker__V1__CoordinatorMessage *m = shoal__worker__v1__coordinator_message__unpack(
            NULL, a->link_send.size, a->link_send.bytes);
        assert_non_null(m);
        if (m->message_case == SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT)
            admitted[strtoul(m->admit->session, NULL, 16)] = true;
        rig_free(m);
    }
    return bytes;
}

/* Lets the leader answer one Admit after the other, as if it read them in order, until each of the
 * requests had an answer. What was sent and not answered stays within the send queue. */
static void answer_all(rig_t *rig, uint64_t link, uint32_t first)
{
    bool admitted[N + 1] = {false}, answered[N + 1] = {false};
    size_t queued = sent(rig, admitted), n_answered = 0;
    rig_clear(rig);
    while (n_answered < N) {
        assert_true(queued < SEND_QUEUE_BYTES);
        unsigned next = 1;
        while (next <= N && !(admitted[next] && !answered[next]))
            next++;
        if (next > N)
            fail_msg("%zu of %d requests were answered, and no other is sent", n_answered, N);
        answered[next] = true;
        n_answered++;
        output(rig, link, next, first);
        queued -= (size_t)LONG * 2 < queued ? (size_t)LONG * 2 : queued;
        queued += sent(rig, admitted);
        rig_clear(rig);
    }
}

static void test_long_logs_go_to_a_leader_again_without_overflowing_its_link(void **state)
{
    (void)state;
    rig_t rig;
    rig_start_with(&rig, 1, (uint64_t)LONG * N * 2);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    for (unsigned n = 1; n <= N; n++)
        generate(&rig, n, LONG);
    uint64_t link = rig_link(&rig);
    rig_hello(&rig, link, epoch, credit);
    answer_all(&rig, link, 0); /* also at the start */
    rig_break(&rig, link);
    rig_pass(&rig, 1000); /* no record comes: they go on */
    assert_true(rig_link(&rig) != link);
    link = rig_link(&rig);
    rig_hello(&rig, link, epoch, credit);
    answer_all(&rig, link, 1);
    rig_stop(&rig);
}

static void test_a_log_larger_than_the_bound_goes_alone(void **state)
{
    (void)state;
    rig_t rig;
    bool admitted[N + 1] = {false};
    rig_start_with(&rig, 1, (uint64_t)LONG * N * 2);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    generate(&rig, 1, (size_t)LONG * 8);
    uint64_t link = rig_link(&rig);
    rig_hello(&rig, link, epoch, credit);
    generate(&rig, 2, 4);
    (void)sent(&rig, admitted);
    assert_true(admitted[1] && !admitted[2]);
    output(&rig, link, 1, 0);
    (void)sent(&rig, admitted);
    assert_true(admitted[2]);
    rig_stop(&rig);
}

static void test_short_logs_are_not_held_back_by_their_number(void **state)
{
    (void)state;
    rig_t rig;
    bool admitted[N + 1] = {false};
    rig_start_with(&rig, 1, (uint64_t)LONG * N * 2);
    uint64_t epoch = rig_replica(&rig, 0, "h0", RIG_IDENTITY);
    for (unsigned n = 1; n <= N; n++)
        generate(&rig, n, 8);
    rig_hello(&rig, rig_link(&rig), epoch, credit);
    (void)sent(&rig, admitted);
    for (unsigned n = 1; n <= N; n++)
        assert_true(admitted[n]);
    rig_stop(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_logs_go_to_a_leader_again_without_overflowing_its_link),
        cmocka_unit_test(test_a_log_larger_than_the_bound_goes_alone),
        cmocka_unit_test(test_short_logs_are_not_held_back_by_their_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
