/* An agent's machine under test: events go in with a clock of the test's own, actions are taken out
 * one by one. */
#ifndef SHOAL_TESTS_UNIT_AGENT_AGENT_WORLD_H
#define SHOAL_TESTS_UNIT_AGENT_AGENT_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/agent_core.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

typedef struct {
    agent_core_t *core;
    uint64_t now;
    agent_action_t action; /* the one that was taken last */
} world_t;

world_t world_new(uint64_t epoch_begun);
bool next(world_t *world);
/* Takes the next action, which must be of this kind. */
void expect(world_t *world, agent_action_kind_t kind);
void expect_nothing(world_t *world);
/* Actions up to one of this kind; the others are dropped. */
void skip_to(world_t *world, agent_action_kind_t kind);
/* Ranks 0..n-1 in `stages` stages; host i is the i-th letter of `hosts`. */
agent_plan_t plan_of(uint64_t epoch, uint32_t tp, uint32_t stages, const char *hosts);
void hello(world_t *world, uint64_t id, const char *address);
void beat(world_t *world, uint64_t id, uint64_t progress, bool busy, uint32_t sequences);
/* Of a busy rank that has used so much processor time. */
void beat_used(world_t *world, uint64_t id, uint64_t progress, uint64_t cpu_ms);
/* Of a rank that loads. */
void beat_loading(world_t *world, uint64_t id, uint64_t progress, uint8_t percent);
void died(world_t *world, uint64_t id, bool crashed, const char *text);
void prepared(world_t *world, uint64_t id, uint64_t epoch);
void active(world_t *world, uint64_t id, uint64_t epoch);
void failed(world_t *world, uint64_t id, uint64_t epoch, status_t status, uint32_t lost,
                   bool silent, const char *session);
void assign(world_t *world, uint64_t epoch, uint32_t tp, uint32_t stages, const char *hosts);
void tick(world_t *world, uint32_t n);
/* A replica of two ranks on this host, active in epoch 10; their ids are 1 and 2. */
world_t active_world(void);

#endif
