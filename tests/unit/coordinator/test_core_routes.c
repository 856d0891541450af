/* Where a request goes does not depend on the coordinator that it came to: coordinators do not ask
 * each other, and still equal prefixes meet the same slot's cached KV. */
#include "tests/unit/coordinator/core_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/ring.h"
#include "tests/sim/sim.h"

enum { SLOTS = 6, PROMPTS = 60, PROMPT_TOKENS = 40, LINKS_MAX = 32 };

typedef struct {
    rig_t rig;
    uint64_t epochs[SLOTS];
    struct { uint64_t link; uint32_t slot; } links[LINKS_MAX];
    size_t n_links;
} bench_t;

/* The slots are learned in this order or in the other one, as a watch may tell them. */
static void start(bench_t *b, const char *id, uint64_t seed, bool backwards)
{
    memset(b, 0, sizeof *b);
    core_config_t config = {.id = id, .seed = seed};
    rig_start_config(&b->rig, SLOTS, &config);
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint32_t slot = backwards ? SLOTS - 1 - i : i;
        char host[8];
        snprintf(host, sizeof host, "h%u", slot);
        b->epochs[slot] = rig_replica(&b->rig, slot, host, RIG_IDENTITY);
    }
}

/* Opens what the core wants opened; the endpoint ends with the slot's ordinal. */
static void answer_links(bench_t *b)
{
    for (size_t i = 0; i < b->rig.actions.n; i++) {
        const core_action_t *a = &b->rig.actions.items[i];
        if (a->kind != CORE_ACTION_LINK_OPEN)
            continue;
        uint64_t link = a->link_open.link;
        size_t k = 0;
        while (k < b->n_links && b->links[k].link != link)
            k++;
        if (k < b->n_links)
            continue;
        assert_true(b->n_links < LINKS_MAX);
        uint32_t slot = (uint32_t)strtoul(strrchr(a->link_open.endpoint, ':') + 1, NULL, 10);
        b->links[b->n_links].link = link;
        b->links[b->n_links++].slot = slot;
        rig_hello(&b->rig, link, b->epochs[slot], 1 << 20);
    }
}

/* Over which slot's link the Admit went out. */
static uint32_t admitted_at(const bench_t *b)
{
    uint32_t slot = UINT32_MAX, n = 0;
    for (size_t i = 0; i < b->rig.actions.n; i++) {
        const core_action_t *a = &b->rig.actions.items[i];
        if (a->kind != CORE_ACTION_LINK_SEND)
            continue;
        Shoal__Worker__V1__CoordinatorMessage *m = shoal__worker__v1__coordinator_message__unpack(
            NULL, a->link_send.size, a->link_send.bytes);
        assert_non_null(m);
        if (m->message_case == SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT) {
            n++;
            for (size_t k = 0; k < b->n_links; k++)
                if (b->links[k].link == a->link_send.link)
                    slot = b->links[k].slot;
        }
        rig_free(m);
    }
    assert_int_equal(n, 1);
    assert_true(slot < SLOTS);
    return slot;
}

/* The slot of a request whose first two blocks are `prefix`'s, and whose rest is `end`'s. */
static uint32_t route(bench_t *b, uint32_t prefix, uint32_t end)
{
    request_t request;
    Shoal__V1__Sampling sampling;
    char *stop_at;
    core_event_t event = {.kind = CORE_EVENT_GENERATE};
    request_draw(5, false, &request);
    request.choices = 1;
    request_fill(&request, &sampling, &stop_at, &event.generate.request);
    uint32_t prompt[PROMPT_TOKENS];
    for (uint32_t i = 0; i < PROMPT_TOKENS; i++)
        prompt[i] = i < 2 * RING_BLOCK ? (prefix * 31 + i * 7) % 60 : (end * 13 + i) % 60;
    event.generate.request.prompt = prompt;
    event.generate.request.n_prompt = PROMPT_TOKENS;
    snprintf(event.generate.request.id, CORE_ID_SIZE, "%016x%016x", prefix, end + 1);
    event.generate.client = 1 + prefix * 16 + end;
    rig_clear(&b->rig);
    rig_event(&b->rig, &event);
    answer_links(b);
    return admitted_at(b);
}

static void test_two_coordinators_send_equal_prefixes_to_the_same_slot(void **state)
{
    (void)state;
    static bench_t first, second;
    start(&first, "c0", 7, false);
    start(&second, "another-coordinator", 99, true);
    uint32_t used[SLOTS] = {0};
    for (uint32_t prefix = 0; prefix < PROMPTS; prefix++) {
        uint32_t slot = route(&first, prefix, 0);
        assert_int_equal(route(&second, prefix, 1), slot);
        assert_int_equal(route(&first, prefix, 2), slot);
        used[slot]++;
    }
    /* They are spread, or meeting would say nothing. */
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        assert_in_range(used[slot], 1, PROMPTS / 2);
    rig_stop(&first.rig);
    rig_stop(&second.rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_coordinators_send_equal_prefixes_to_the_same_slot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
