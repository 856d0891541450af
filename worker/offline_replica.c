/* A replica for the offline commands: this process is rank 0 and leader, its children are the
 * others. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/pool.h"
#include "common/model/kv_type.h"
#include "common/model/model.h"
#include "common/model/model_files.h"
#include "common/model/plan.h"
#include "worker/engine/rank.h"
#include "worker/offline.h"
#include "worker/rank_process.h"

#define FORMATION_MS 120000u
#define STOP_MS 3000u

struct offline_client {
    leader_t *leader;
    uint32_t stream;
    pthread_mutex_t lock;
    pthread_cond_t rung;
    bool has_news;
};

typedef struct {
    const offline_replica_t *replica;
    const offline_work_t *work;
    offline_client_t client;
    pthread_t driver;
    bool driving;
    status_t driver_status;
    char driver_text[STATUS_TEXT_MAX];
} offline_t;

/* ---- the client ---- */

static void ring(void *context)
{
    offline_client_t *client = context;
    pthread_mutex_lock(&client->lock);
    client->has_news = true;
    pthread_cond_signal(&client->rung);
    pthread_mutex_unlock(&client->lock);
}

void offline_admit(offline_client_t *client, const admission_t *admission)
{
    leader_admit(client->leader, client->stream, admission);
}

void offline_next(offline_client_t *client, sequence_output_t *out)
{
    /* Reading first and waiting then cannot miss a ring: has_news stays set until it was seen. */
    while (!leader_take(client->leader, client->stream, out, NULL)) {
        pthread_mutex_lock(&client->lock);
        while (!client->has_news)
            pthread_cond_wait(&client->rung, &client->lock);
        client->has_news = false;
        pthread_mutex_unlock(&client->lock);
    }
}

status_t offline_round(offline_client_t *client, const offline_round_t *round)
{
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, round->n_prompt), n_ended = 0;
    for (uint32_t i = 0; i < round->n; i++) {
        round->prompt(round->context, i, ids);
        admission_t admission = {.owner = 1,
                                 .choice = round->choice,
                                 .prompt = ids,
                                 .n_prompt = round->n_prompt,
                                 .sampling = sampling_default,
                                 .max_tokens = round->n_ids,
                                 .logits_from = LOGITS_NONE};
        snprintf(admission.session, sizeof admission.session, "%u", i);
        offline_admit(client, &admission);
    }
    free(ids);
    while (n_ended < round->n) {
        sequence_output_t out;
        offline_next(client, &out);
        if (out.end != END_NONE && out.end != END_FINISHED)
            return fail(STATUS_REPLICA_LOST, "sequence %s: %s", out.session, out.error);
        if (round->taken)
            round->taken(round->context, &out);
        n_ended += out.end != END_NONE;
    }
    return STATUS_OK;
}

void offline_load(offline_client_t *client, scheduler_load_t *out)
{
    leader_load(client->leader, out);
}

/* ---- the driver ---- */

static void *drive(void *argument)
{
    offline_t *offline = argument;
    offline_client_t *client = &offline->client;
    client->stream = leader_stream_open(client->leader, ring, client);
    if (client->stream == 0) {
        /* The replica was lost before its first step; rank_run() has the words. */
        offline->driver_status = STATUS_OK;
        return NULL;
    }
    offline->driver_status = offline->work->drive(offline->work->context, client);
    if (offline->driver_status != STATUS_OK)
        snprintf(offline->driver_text, sizeof offline->driver_text, "%s", status_text());
    leader_stream_close(client->leader, client->stream);
    leader_stop(client->leader);
    return NULL;
}

static void on_active(void *context, const char *text_identity, uint64_t kv_tokens,
                      uint32_t context_max)
{
    offline_t *offline = context;
    (void)text_identity, (void)kv_tokens, (void)context_max;
    offline->driving = pthread_create(&offline->driver, NULL, drive, offline) == 0;
    if (!offline->driving)
        leader_stop(offline->client.leader);
}

static void on_logits(void *context, const char *session, uint32_t choice, uint32_t position,
                      uint32_t n_rows, uint32_t vocab, const float *rows)
{
    offline_t *offline = context;
    if (offline->work->logits)
        offline->work->logits(offline->work->context, session, choice, position, n_rows, vocab,
                              rows);
}

/* ---- forming ---- */

uint32_t offline_threads(const offline_replica_t *replica)
{
    uint32_t share = pool_cpus() / (uint32_t)(replica->tp * replica->stages);
    return replica->threads > 0 ? (uint32_t)replica->threads : share > 0 ? share : 1;
}

static void copy_text(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

/* What is planned of a replica. */
typedef struct {
    const model_t *model;
    plan_cut_t cut;
    bool shared_head;
    plan_run_t layers[PLAN_STAGES_MAX];
} planned_t;

static void fill_start(rank_start_t *start, const offline_replica_t *replica, const char *digest,
                       const planned_t *planned, uint32_t rank)
{
    const plan_cut_t *cut = &planned->cut;
    const plan_run_t *layers = planned->layers;
    uint32_t tp = (uint32_t)replica->tp, stages = (uint32_t)replica->stages;
    copy_text(start->replica, sizeof start->replica, "offline/0");
    copy_text(start->model_path, sizeof start->model_path, model_path(planned->model));
    copy_text(start->model_digest, sizeof start->model_digest, digest);
    copy_text(start->activations, sizeof start->activations, replica->activations);
    copy_text(start->quantize, sizeof start->quantize, replica->quantize);
    copy_text(start->kv, sizeof start->kv, replica->kv ? replica->kv : "");
    if (replica->pack_cache) {
        copy_text(start->data_dir, sizeof start->data_dir, replica->pack_cache);
        start->pack_cache_bytes = (uint64_t)replica->pack_cache_bytes;
    }
    copy_text(start->host, sizeof start->host, "local");
    copy_text(start->address, sizeof start->address, "127.0.0.1");
    start->rank = rank;
    start->n_ranks = tp * stages;
    start->tp = tp;
    start->stages = stages;
    start->stage = rank / tp;
    start->slice = rank % tp;
    start->expert_groups = cut->expert_groups;
    start->attention_slices = cut->attention_slices;
    start->attention_replicas = cut->attention_replicas;
    start->shared_head = planned->shared_head;
    start->layer_first = layers[rank / tp].first;
    start->layer_count = layers[rank / tp].count;
    start->threads = offline_threads(replica);
    start->context_max = replica->context_max;
    /* Each replica of attention has its own part of the KV, and any of them may get every prompt. */
    start->kv_tokens_max = replica->kv_tokens_max * cut->attention_replicas;
    start->prefill_tokens_max = (uint64_t)replica->chunk;
    start->prefix_cache_off = replica->no_prefix_cache;
    start->beyond_context = true;
    if (replica->trace_path)
        snprintf(start->trace_path, sizeof start->trace_path, "%s.%u", replica->trace_path, rank);
}

/* As for a replica on one host, unless told otherwise. */
static status_t plan_head(const offline_replica_t *replica, const plan_sizes_t *sizes,
                          bool *shared_out)
{
    const char *head = replica->head;
    bool shared = strcmp(head, "shared") == 0;
    if (strcmp(head, "auto") == 0)
        shared = plan_head_is_large(sizes, (uint32_t)replica->stages);
    else if (!shared && strcmp(head, "last") != 0)
        return fail(STATUS_INVALID, "--head is \"%s\"; it must be auto, last or shared", head);
    *shared_out = shared && replica->stages > 1;
    return STATUS_OK;
}

status_t offline_model(const offline_replica_t *replica, model_t **own_out)
{
    /* The seal of a file stands beside the file, not beside a link to it. */
    char *real = model_file_real(replica->model_path);
    status_t status = model_open_quantized(real ? real : replica->model_path, replica->quantize,
                                           own_out);
    free(real);
    return status;
}

static status_t plan_all(const offline_replica_t *replica, const model_t *model, planned_t *out)
{
    plan_sizes_t sizes;
    out->model = model;
    plan_sizes(model, &sizes);
    status_t status = plan_head(replica, &sizes, &out->shared_head);
    if (status == STATUS_OK)
        status = plan_stages(&sizes, (uint32_t)replica->stages, out->shared_head, out->layers);
    plan_cut_t wanted = {(uint32_t)replica->tp, (uint32_t)replica->expert_groups,
                         (uint32_t)replica->attention_slices,
                         (uint32_t)replica->attention_replicas};
    if (status == STATUS_OK)
        status = plan_cut(&sizes.config, &wanted, &out->cut);
    return status;
}

static void own_config(const offline_replica_t *replica, const model_t *model,
                       const rank_start_t *start, rank_config_t *out)
{
    *out = (rank_config_t){
        .model_path = start->model_path,
        .model = model,
        .quantize = start->quantize,
        .kv = start->kv,
        .model_digest = start->model_digest,
        .cache_dir = replica->pack_cache,
        .pack_cache_bytes = start->pack_cache_bytes,
        .tp = start->tp,
        .stages = start->stages,
        .expert_groups = start->expert_groups,
        .attention_slices = start->attention_slices,
        .attention_replicas = start->attention_replicas,
        .shared_head = start->shared_head,
        .layer_first = start->layer_first,
        .layer_count = start->layer_count,
        .threads = start->threads,
        .activations_f32 = strcmp(replica->activations, "f32") == 0,
        .context_max = start->context_max,
        .kv_tokens_max = start->kv_tokens_max,
        .prefill_tokens_max = (uint32_t)start->prefill_tokens_max,
        .batch_max = (uint32_t)(replica->batch < replica->chunk ? replica->batch : replica->chunk),
        .no_prefix_cache = replica->no_prefix_cache,
        .speculate_max = (uint32_t)replica->speculate,
        .draft_path = replica->draft_path,
        .whole_prompts = true, /* nobody waits for a token: each part is measured by itself */
        .form_timeout_ms = FORMATION_MS,
        .beyond_context = true,
        .late_queue = replica->late_queue,
        .fixed_rows = (uint32_t)replica->fixed_rows,
        .hidden = replica->hidden,
        .hidden_context = replica->hidden_context,
        .trace_path = start->trace_path[0] ? start->trace_path : NULL,
    };
}

/* Runs one epoch as rank 0; the fabric, if there is one, belongs to it. */
static status_t run_epoch(offline_t *offline, rank_t *rank, rank_group_t *group)
{
    fabric_t *fabric = NULL;
    if (group)
        TRY(fabric_open(rank_group_fabric_config(group), &fabric));
    offline_client_t *client = &offline->client;
    client->leader = leader_new();
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->rung, NULL);
    rank_callbacks_t callbacks = {.context = offline, .active = on_active, .logits = on_logits};
    status_t status = rank_run(rank, fabric, client->leader, &callbacks);
    char text[STATUS_TEXT_MAX] = "", child[STATUS_TEXT_MAX] = "";
    if (status != STATUS_OK) {
        snprintf(text, sizeof text, "%s", status_text());
        if (fabric)
            fabric_abort(fabric, text);
        if (group)
            rank_group_failure(group, child, sizeof child);
    }
    if (offline->driving)
        pthread_join(offline->driver, NULL);
    leader_free(client->leader);
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->rung);
    fabric_close(fabric);
    if (status != STATUS_OK)
        return fail(status, "%s%s%s", text, child[0] ? "; " : "", child);
    if (offline->driver_status != STATUS_OK)
        return fail(offline->driver_status, "%s", offline->driver_text);
    return offline->driving ? STATUS_OK : fail(STATUS_INTERNAL, "cannot start a thread");
}

static status_t run_ranks(offline_t *offline, const model_t *model, const rank_start_t *starts)
{
    rank_group_t *group = NULL;
    rank_t *rank;
    rank_config_t config;
    own_config(offline->replica, model, &starts[0], &config);
    /* Children load while this process does. */
    if (starts[0].n_ranks > 1)
        TRY(rank_group_start(starts, starts[0].n_ranks, FORMATION_MS, &group));
    status_t status = rank_open(&config, &rank);
    if (status == STATUS_OK) {
        status = run_epoch(offline, rank, group);
        rank_close(rank);
    }
    rank_group_stop(group, STOP_MS);
    return status;
}

static status_t run_model(const offline_replica_t *replica, const offline_work_t *work,
                          const model_t *model)
{
    planned_t planned;
    char digest[MODEL_DIGEST_SIZE];
    TRY(plan_all(replica, model, &planned));
    TRY(model_digest(replica->model_path, replica->pack_cache, digest));
    uint32_t n = (uint32_t)(replica->tp * replica->stages);
    rank_start_t *starts = MEM_NEW_ARRAY(rank_start_t, n);
    for (uint32_t i = 0; i < n; i++)
        fill_start(&starts[i], replica, digest, &planned, i);
    offline_t offline = {.replica = replica, .work = work};
    status_t status = run_ranks(&offline, model, starts);
    free(starts);
    return status;
}

status_t offline_run(const offline_replica_t *replica, const offline_work_t *work)
{
    model_t *own_model = NULL;
    if (replica->tp * replica->stages > FABRIC_RANKS_MAX)
        return fail(STATUS_INVALID, "tp %lld × %lld stages: at most %d ranks",
                    (long long)replica->tp, (long long)replica->stages, FABRIC_RANKS_MAX);
    if (strcmp(replica->activations, "native") != 0 && strcmp(replica->activations, "f32") != 0)
        return fail(STATUS_INVALID, "--activations is \"%s\"; it must be native or f32",
                    replica->activations);
    TRY(kv_type_check(replica->kv, strcmp(replica->activations, "f32") == 0));
    if (replica->model == NULL)
        TRY(offline_model(replica, &own_model));
    status_t status = run_model(replica, work, own_model ? own_model : replica->model);
    model_close(own_model);
    return status;
}
