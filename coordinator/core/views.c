/* What fronts ask between steps: read-only pictures of the machine. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/state.h"

static void fill(const deployment_t *d, core_deployment_view_t *out)
{
    *out = (core_deployment_view_t){
        .name = d->name,
        .model_name = d->record->model_name,
        .model_path = d->record->model_path,
        .digest = d->record->model_digest,
        .context_max = d->record->context_max,
        .replicas = d->record->replicas,
        .tp = d->record->tp,
        .stages = d->record->stages,
        .text_identity = "",
        .tokenizer = d->model == MODEL_READY ? d->tokenizer : NULL,
        .message = text_or_empty(d->message),
    };
    /* Where the plan is right and forming it fails, the last failure says why. */
    for (size_t i = 0; i < d->n_slots && !out->message[0]; i++) {
        const slot_t *slot = d->slots[i];
        if (slot && slot->plan && !slot->active && slot->failure)
            out->message = slot->failure->message;
    }
    for (size_t i = 0; i < d->n_slots; i++) {
        if (!d->slots[i] || !d->slots[i]->active)
            continue;
        out->replicas_active++;
        out->text_identity = d->slots[i]->active->text_identity;
    }
}

static const deployment_t *at(const core_t *core, size_t place)
{
    for (size_t i = 0; i < core->n_deployments; i++)
        if (core->deployments[i]->record && place-- == 0)
            return core->deployments[i];
    return NULL;
}

size_t core_n_deployments(const core_t *core)
{
    size_t n = 0;
    for (size_t i = 0; i < core->n_deployments; i++)
        n += core->deployments[i]->record != NULL;
    return n;
}

void core_deployment_at(const core_t *core, size_t i, core_deployment_view_t *out)
{
    const deployment_t *d = at(core, i);
    CHECK(d != NULL);
    fill(d, out);
}

bool core_find_deployment(const core_t *core, const char *name, core_deployment_view_t *out)
{
    const deployment_t *d = NULL;
    if (name && *name)
        d = cluster_find(core, name);
    else if (core_n_deployments(core) == 1)
        d = at(core, 0);
    if (!d || !d->record)
        return false;
    fill(d, out);
    return true;
}

static const char *state_name(const slot_t *slot)
{
    const Shoal__Cluster__V1__DeploymentRecord *r = slot->deployment->record;
    if (!r || slot->ordinal >= r->replicas)
        return "draining";
    return slot->active ? "active" : slot->failed ? "lost" : "forming";
}

static char *copy(arena_t *arena, const char *text)
{
    text = text_or_empty(text);
    return arena_strndup(arena, text, strlen(text));
}

static void fill_ranks(const slot_t *slot, arena_t *arena, Shoal__V1__Replica *out)
{
    out->n_ranks = slot->plan->n_ranks;
    out->ranks = ARENA_NEW_ARRAY(arena, Shoal__V1__RankPlace *, out->n_ranks + 1);
    for (size_t i = 0; i < out->n_ranks; i++) {
        const Shoal__Cluster__V1__RankPlan *from = slot->plan->ranks[i];
        Shoal__V1__RankPlace *to = ARENA_NEW_ARRAY(arena, Shoal__V1__RankPlace, 1);
        shoal__v1__rank_place__init(to);
        to->rank = from->rank;
        to->stage = from->stage;
        to->slice = from->slice;
        to->host = copy(arena, from->host);
        to->layer_first = from->layer_first;
        to->layer_count = from->layer_count;
        for (size_t k = 0; slot->active && k < slot->active->n_ranks; k++)
            if (slot->active->ranks[k]->rank == from->rank)
                to->pid = slot->active->ranks[k]->pid;
        out->ranks[i] = to;
    }
}

static Shoal__V1__Replica *describe(const slot_t *slot, arena_t *arena)
{
    Shoal__V1__Replica *r = ARENA_NEW_ARRAY(arena, Shoal__V1__Replica, 1);
    shoal__v1__replica__init(r);
    char *id = mem_format("%s/%u", slot->deployment->name, slot->ordinal);
    r->id = copy(arena, id);
    free(id);
    r->deployment = copy(arena, slot->deployment->name);
    r->ordinal = slot->ordinal;
    r->state = copy(arena, state_name(slot));
    r->epoch = slot->epoch;
    r->tp = slot->plan->tp;
    r->stages = slot->plan->stages;
    r->expert_groups = slot->plan->expert_groups;
    r->attention_slices = slot->plan->attention_slices;
    r->attention_replicas = slot->plan->attention_replicas;
    r->model_digest = copy(arena, slot->plan->model_digest);
    r->activations = copy(arena, slot->plan->activations);
    r->quantize = copy(arena, slot->plan->quantize);
    r->kv = copy(arena, slot->plan->kv);
    r->draft_digest = copy(arena, slot->plan->draft_digest);
    r->context_max = slot->plan->context_max;
    r->kv_tokens_wanted = slot->plan->kv_tokens_wanted;
    r->step_settings = ARENA_NEW_ARRAY(arena, Shoal__V1__StepSettings, 1);
    shoal__v1__step_settings__init(r->step_settings);
    r->step_settings->rows_max = (uint32_t)slot->plan->prefill_tokens_max;
    r->step_settings->speculate_max = slot->plan->speculate_max;
    r->step_settings->speculate_off = slot->plan->speculate_off;
    r->step_settings->prefix_cache_off = slot->plan->prefix_cache_off;
    r->step_settings->whole_prompts = slot->plan->whole_prompts;
    if (slot->active) {
        r->leader = copy(arena, slot->active->leader);
        r->text_identity = copy(arena, slot->active->text_identity);
        r->kv_tokens_total = slot->active->kv_tokens;
    }
    for (size_t i = 0; !slot->active && i < slot->n_loading; i++) {
        const loading_t *loading = &slot->loading[i];
        if (loading->epoch != slot->epoch || (r->loading && loading->percent >= r->loaded_percent))
            continue;
        r->loading = true;
        r->loaded_percent = loading->percent;
    }
    if (slot->failed && slot->failure)
        r->message = copy(arena, slot->failure->message);
    fill_ranks(slot, arena, r);
    if (slot->link) {
        const Shoal__Worker__V1__Load *load = &slot->link->load;
        r->running = load->running;
        r->waiting = load->waiting;
        r->steps = slot->link->steps;
        r->kv_tokens_free = load->kv_tokens_free;
        r->prefix_hit_tokens = load->prefix_hit_tokens;
        r->sequences_max_in_step = load->sequences_max_in_step;
        r->tokens_produced = load->tokens_produced;
    }
    return r;
}

void core_list_replicas(const core_t *core, const char *deployment, arena_t *arena,
                        Shoal__V1__ListReplicasResponse *out)
{
    shoal__v1__list_replicas_response__init(out);
    out->replicas = ARENA_NEW_ARRAY(arena, Shoal__V1__Replica *, core->n_slots + 1);
    for (size_t i = 0; i < core->n_deployments; i++) {
        const deployment_t *d = core->deployments[i];
        if (deployment && *deployment && strcmp(deployment, d->name) != 0)
            continue;
        for (size_t k = 0; k < d->n_slots; k++)
            if (d->slots[k] && d->slots[k]->plan)
                out->replicas[out->n_replicas++] = describe(d->slots[k], arena);
    }
}

void core_status(const core_t *core, arena_t *arena, Shoal__V1__StatusResponse *out)
{
    out->elected = core->elected;
    out->coordinators = ARENA_NEW_ARRAY(arena, char *, core->n_coordinators + 1);
    out->n_coordinators = core->n_coordinators;
    for (size_t i = 0; i < core->n_coordinators; i++)
        out->coordinators[i] = copy(arena, core->coordinators[i].endpoint);
    uint64_t live = 0;
    size_t i = 0;
    for (const session_t *s; (s = table_next(&core->sessions, &i));)
        live += s->n_ended < s->n_choices;
    out->sessions_waiting = core->n_waiting;
    out->sessions_running = live;
}
