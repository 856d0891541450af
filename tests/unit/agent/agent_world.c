#include "agent_world.h"

world_t world_new(uint64_t epoch_begun)
{
    agent_config_t config = {.cores = 8, .epoch_begun = epoch_begun};
    snprintf(config.host, sizeof config.host, "a");
    snprintf(config.address, sizeof config.address, "10.0.0.1");
    return (world_t){.core = agent_core_new(&config), .now = 1000};
}

bool next(world_t *world)
{
    return agent_core_next(world->core, &world->action);
}

/* Takes the next action, which must be of this kind. */
void expect(world_t *world, agent_action_kind_t kind)
{
    if (!next(world))
        fail_msg("nothing follows, action %d should", (int)kind);
    assert_int_equal(world->action.kind, kind);
}

void expect_nothing(world_t *world)
{
    if (next(world))
        fail_msg("action %d follows, nothing should (%s)", (int)world->action.kind,
                 world->action.text);
}

/* Actions up to one of this kind; the others are dropped. */
void skip_to(world_t *world, agent_action_kind_t kind)
{
    while (next(world)) {
        if (world->action.kind == kind)
            return;
    }
    fail_msg("action %d never follows", (int)kind);
}

/* Ranks 0..n-1 in `stages` stages; host i is the i-th letter of `hosts`. */
agent_plan_t plan_of(uint64_t epoch, uint32_t tp, uint32_t stages, const char *hosts)
{
    agent_plan_t plan = {.epoch = epoch, .tp = tp, .stages = stages, .n_ranks = tp * stages,
                         .context_max = 512, .formation_ms = 5000, .kv_tokens_max = 4096,
                         .expert_groups = tp, .attention_slices = 1, .attention_replicas = 1,
                         .speculate_max = 3,
                         .prefix_cache_off = true, .whole_prompts = true};
    snprintf(plan.deployment, sizeof plan.deployment, "smol");
    snprintf(plan.activations, sizeof plan.activations, "native");
    snprintf(plan.model_digest, sizeof plan.model_digest, "sha256:aa");
    snprintf(plan.model_path, sizeof plan.model_path, "/models/smol.gguf");
    snprintf(plan.draft_digest, sizeof plan.draft_digest, "sha256:bb");
    snprintf(plan.draft_path, sizeof plan.draft_path, "/models/draft.gguf");
    for (uint32_t i = 0; i < plan.n_ranks; i++) {
        plan.ranks[i] = (agent_plan_rank_t){.stage = i / tp, .slice = i % tp,
                                            .layer_first = i / tp * 10, .layer_count = 10};
        snprintf(plan.ranks[i].host, sizeof plan.ranks[i].host, "%c", hosts[i]);
    }
    return plan;
}

void hello(world_t *world, uint64_t id, const char *address)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_HELLO;
    message->hello.address_bytes = (uint32_t)strlen(address);
    memcpy(message->hello.address, address, strlen(address));
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void beat(world_t *world, uint64_t id, uint64_t progress, bool busy, uint32_t sequences)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_BEAT;
    message->beat =
        (control_beat_t){.progress = progress, .sequences = sequences, .busy = busy};
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void beat_used(world_t *world, uint64_t id, uint64_t progress, uint64_t cpu_ms)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_BEAT;
    message->beat = (control_beat_t){.progress = progress, .busy = true, .cpu_ms = cpu_ms};
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void beat_loading(world_t *world, uint64_t id, uint64_t progress, uint8_t percent)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_BEAT;
    message->beat = (control_beat_t){
        .progress = progress, .busy = true, .loading = true, .loaded_percent = percent};
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void died(world_t *world, uint64_t id, bool crashed, const char *text)
{
    const agent_death_t death = {.crashed = crashed, .text = text};
    agent_core_died(world->core, id, &death, world->now);
}

void prepared(world_t *world, uint64_t id, uint64_t epoch)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_PREPARED;
    message->prepared.epoch = epoch;
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void active(world_t *world, uint64_t id, uint64_t epoch)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_ACTIVE;
    message->active.epoch = epoch;
    snprintf(message->active.leader, sizeof message->active.leader, "10.0.0.1:7000");
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void failed(world_t *world, uint64_t id, uint64_t epoch, status_t status, uint32_t lost,
                   bool silent, const char *session)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = CONTROL_FAILED;
    message->failed.epoch = epoch;
    message->failed.status = status;
    message->failed.lost_rank = lost;
    message->failed.silent = silent;
    snprintf(message->failed.text, sizeof message->failed.text, "it failed");
    if (session) {
        message->failed.n_sessions = 1;
        snprintf(message->failed.sessions[0], CONTROL_SESSION_BYTES, "%s", session);
    }
    agent_core_message(world->core, id, message, world->now);
    free(message);
}

void assign(world_t *world, uint64_t epoch, uint32_t tp, uint32_t stages, const char *hosts)
{
    agent_plan_t plan = plan_of(epoch, tp, stages, hosts);
    assert_int_equal(agent_core_assign(world->core, &plan, world->now), STATUS_OK);
}

void tick(world_t *world, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        world->now += AGENT_TICK_MS;
        agent_core_tick(world->core, world->now);
    }
}

/* A replica of two ranks on this host, active in epoch 10; their ids are 1 and 2. */
world_t active_world(void)
{
    world_t world = world_new(0);
    assign(&world, 10, 2, 1, "aa");
    expect(&world, AGENT_BEGIN);
    expect(&world, AGENT_SPAWN);
    expect(&world, AGENT_SPAWN);
    agent_core_spawned(world.core, 1, 501, "", world.now);
    agent_core_spawned(world.core, 2, 502, "", world.now);
    hello(&world, 1, "");
    hello(&world, 2, "");
    active(&world, 1, 10);
    skip_to(&world, AGENT_PUBLISH_ACTIVE);
    expect_nothing(&world);
    return world;
}
