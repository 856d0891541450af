/* When a model that is put into a folder is offered: at the first look behind a link to files that
 * have not changed for a while, and only when two looks agree where one was just written. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "worker/agent_models.h"

#undef fail
#include <cmocka.h>

#define GOLDEN SHOAL_TEST_DATA "/gguf-llama-q4_0/model.gguf"

typedef struct {
    char folder[64], data[80], model[96];
    agent_host_t host;
    agent_models_t *models;
    uint64_t begun_ms;
} world_t;

static void begin(world_t *world)
{
    memset(world, 0, sizeof *world);
    snprintf(world->folder, sizeof world->folder, "/tmp/shoal-models-XXXXXX");
    assert_non_null(mkdtemp(world->folder));
    snprintf(world->data, sizeof world->data, "%s/.data", world->folder);
    snprintf(world->model, sizeof world->model, "%s/model.gguf", world->folder);
    assert_int_equal(mkdir(world->data, 0700), 0);
    assert_int_equal(
        agent_models_open(world->folder, world->data, &world->host, &world->models), STATUS_OK);
    assert_int_equal(world->host.n_models, 0);
    world->begun_ms = clock_ms();
}

/* Milliseconds until the model is offered. */
static uint64_t wait_offered(world_t *world)
{
    struct pollfd fd = {.fd = agent_models_fd(world->models), .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 30000), 1);
    uint64_t took = clock_ms() - world->begun_ms;
    assert_true(agent_models_take(world->models, &world->host));
    assert_int_equal(world->host.n_models, 1);
    return took;
}

static void end(world_t *world)
{
    char command[128];
    agent_models_close(world->models);
    agent_host_release(&world->host);
    snprintf(command, sizeof command, "rm -rf %s", world->folder);
    assert_int_equal(system(command), 0);
}

static void test_a_link_to_a_settled_model_is_offered_at_the_first_look(void **state)
{
    (void)state;
    world_t world;
    begin(&world);
    assert_int_equal(symlink(GOLDEN, world.model), 0);
    assert_in_range(wait_offered(&world), 0, 2 * AGENT_MODELS_LOOK_MS - 200);
    assert_non_null(strstr(world.host.models[0].path, "gguf-llama-q4_0"));
    end(&world);
}

static void test_a_model_that_was_just_written_is_offered_when_two_looks_agree(void **state)
{
    (void)state;
    world_t world;
    char command[512];
    begin(&world);
    snprintf(command, sizeof command, "cp -p %s %s", GOLDEN, world.model);
    assert_int_equal(system(command), 0);
    assert_in_range(wait_offered(&world), 2 * AGENT_MODELS_LOOK_MS - 200, 30000);
    end(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_link_to_a_settled_model_is_offered_at_the_first_look),
        cmocka_unit_test(test_a_model_that_was_just_written_is_offered_when_two_looks_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
