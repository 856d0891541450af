/* shoal.v1.Admin: what operators read and change. Changes are written to etcd by compare-and-set
 * and take effect when the core sees them come back by its watch, as every other coordinator
 * does. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/kv_type.h"
#include "common/model/model.h"
#include "common/model/model_files.h"
#include "coordinator/front_draft.h"
#include "coordinator/front_state.h"
#include "shoal/cluster/v1/state.pb-c.h"

#define REPLICAS_MAX 4096
#define CONTEXT_DEFAULT 4096
#define SHAPES_MAX 4096
#define STEP_ROWS_MAX 8192 /* that a rank takes; a test of the command line holds it to this */
#define SPECULATE_MAX 16

typedef Shoal__Cluster__V1__DeploymentRecord record_t;

static char *copy_text(arena_t *arena, const char *text)
{
    return arena_strndup(arena, text ? text : "", text ? strlen(text) : 0);
}

/* ---- one write of a deployment: read, change, compare and set ---- */

typedef struct edit edit_t;
struct edit {
    ask_t *ask;
    char *key;
    /* Changes *record (unpacked or fresh; `exists` says which), in the arena. */
    status_t (*change)(edit_t *edit, record_t *record, bool exists);
    arena_t arena;
    bool exists;
    int64_t mod_revision;
    ProtobufCMessage *old; /* a record_t, or NULL */
    record_t record;       /* what is being written */
    unsigned tries;
    status_t status;
    char text[STATUS_TEXT_MAX];
    uint64_t version;
    char digest[MODEL_DIGEST_SIZE], draft[MODEL_DIGEST_SIZE]; /* Deploy: found on this machine */
    uint64_t draft_bytes;
    uint32_t context_train;
};

static void edit_read(edit_t *edit);

static void edit_end(edit_t *take_edit)
{
    if (take_edit->status != STATUS_OK) {
        ask_fail(take_edit->ask, fail(take_edit->status, "%s", take_edit->text));
    } else {
        ask_reply(take_edit->ask,
                  front_deployment(&take_edit->arena, &take_edit->record, take_edit->version, ""));
    }
    rpc_message_free(take_edit->old);
    arena_release(&take_edit->arena);
    free(take_edit->key);
    free(take_edit);
}

static void edit_fail(edit_t *edit, status_t status)
{
    edit->status = status;
    snprintf(edit->text, sizeof edit->text, "%s", status_text());
    edit_end(edit);
}

static void again(shell_t *shell, void *take_data)
{
    edit_t *edit = take_data;
    if (!atomic_load(&shell->running))
        edit_fail(edit, fail(STATUS_UNREACHABLE, "the coordinator is ending"));
    else
        edit_read(edit);
}

static void on_written(void *context, const etcd_result_t *result)
{
    edit_t *edit = context;
    if (result->status != STATUS_OK) {
        edit_fail(edit, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
    } else if (result->succeeded) {
        edit->version = (uint64_t)result->revision;
        edit_end(edit);
    } else if (++edit->tries < 8) { /* somebody else was faster: change what stands there now */
        shell_post(edit->ask->shell, again, edit);
    } else {
        edit_fail(edit, fail(STATUS_STALE, "the deployment is being changed by others; repeat"));
    }
}

static void edit_write(shell_t *shell, void *take_data)
{
    edit_t *edit = take_data;
    status_t status = atomic_load(&shell->running)
                          ? edit->change(edit, &edit->record, edit->exists)
                          : fail(STATUS_UNREACHABLE, "the coordinator is ending");
    if (status != STATUS_OK) {
        edit_fail(edit, status);
        return;
    }
    buffer_t bytes = {0};
    rpc_pack(&edit->record, &bytes);
    etcd_compare_t compare = {
        .key = edit->key, .target = ETCD_MOD_REVISION, .number = edit->mod_revision};
    etcd_op_t op = {
        .kind = ETCD_PUT, .key = edit->key, .value = bytes.data, .value_size = bytes.size};
    etcd_txn_t txn = {.compares = &compare, .n_compares = 1, .then = &op, .n_then = 1};
    etcd_txn(shell->etcd, &txn, on_written, edit);
    buffer_release(&bytes);
}

static void on_edit_read(void *context, const etcd_result_t *result)
{
    edit_t *edit = context;
    if (result->status != STATUS_OK) {
        edit_fail(edit, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
        return;
    }
    rpc_message_free(edit->old);
    edit->old = NULL;
    edit->exists = result->n_kvs == 1;
    edit->mod_revision = edit->exists ? result->kvs[0].mod_revision : 0;
    shoal__cluster__v1__deployment_record__init(&edit->record);
    if (edit->exists) {
        status_t status = rpc_unpack(&shoal__cluster__v1__deployment_record__descriptor,
                                     result->kvs[0].value, result->kvs[0].value_size, NULL,
                                     &edit->old);
        if (status != STATUS_OK) {
            edit_fail(edit, status);
            return;
        }
        edit->record = *(const record_t *)edit->old;
    }
    shell_post(edit->ask->shell, edit_write, edit);
}

static void edit_read(edit_t *edit)
{
    etcd_get(edit->ask->shell->etcd, edit->key, on_edit_read, edit);
}

static status_t check_name(const char *name)
{
    size_t n = strlen(name);
    static const char *const allowed =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (n < 1 || n > REQUEST_NAME_BYTES_MAX || strspn(name, allowed) != n)
        return fail(STATUS_INVALID, "name: \"%.64s\" is not 1 to 128 of letters, digits, \".\", "
                    "\"_\" and \"-\"", name);
    return STATUS_OK;
}

static edit_t *edit_new(ask_t *ask, const char *name,
                        status_t (*change)(edit_t *, record_t *, bool))
{
    edit_t *edit = MEM_NEW(edit_t);
    char *key = mem_format("deployments/%s", name);
    edit->ask = ask;
    edit->key = stores_key(ask->shell, key);
    edit->change = change;
    free(key);
    return edit;
}

/* ---- Deploy ---- */

static status_t check_shape(uint32_t replicas, uint32_t tp, uint32_t stages)
{
    if (replicas > REPLICAS_MAX)
        return fail(STATUS_INVALID, "replicas: %u is over %d", replicas, REPLICAS_MAX);
    if (tp > PLAN_TP_MAX)
        return fail(STATUS_INVALID, "tp: %u is not 1 to %d (0: the planner chooses)", tp,
                    PLAN_TP_MAX);
    if (stages > PLAN_STAGES_MAX)
        return fail(STATUS_INVALID, "stages: %u is not 1 to %d (0: the planner chooses)", stages,
                    PLAN_STAGES_MAX);
    return STATUS_OK;
}

static status_t check_steps(const Shoal__V1__StepSettings *steps)
{
    if (steps && steps->rows_max > STEP_ROWS_MAX)
        return fail(STATUS_INVALID, "steps.rows_max: %u; at most %d, or 0 for the default",
                    steps->rows_max, STEP_ROWS_MAX);
    if (steps && steps->speculate_max > SPECULATE_MAX)
        return fail(STATUS_INVALID, "steps.speculate_max: %u; at most %d, or 0 for the default",
                    steps->speculate_max, SPECULATE_MAX);
    return STATUS_OK;
}

static status_t check_deployment(const Shoal__V1__Deployment *d)
{
    if (!d)
        return fail(STATUS_INVALID, "deployment: it is missing");
    TRY(check_name(d->name));
    TRY(request_check_text("model_path", d->model_path, 4096));
    TRY(check_shape(d->replicas, d->tp, d->stages));
    if (!d->tp && (d->expert_groups || d->attention_slices || d->attention_replicas > 1))
        return fail(STATUS_INVALID, "tp: it is left to the planner, but expert_groups, "
                    "attention_slices and attention_replicas are of one tp; give it too");
    if (!d->model_path[0])
        return fail(STATUS_INVALID, "model_path: it is empty");
    if (d->activations[0] && strcmp(d->activations, "native") && strcmp(d->activations, "f32"))
        return fail(STATUS_INVALID, "activations: \"%.20s\" is neither \"native\" nor \"f32\"",
                    d->activations);
    TRY(kv_type_check(d->kv, strcmp(d->activations, "f32") == 0));
    TRY(model_check_quantize(d->quantize));
    TRY(check_steps(d->steps));
    TRY(front_draft_check(d));
    if (d->n_shapes > SHAPES_MAX)
        return fail(STATUS_INVALID, "shapes: %zu; at most %d", d->n_shapes, SHAPES_MAX);
    for (size_t i = 0; i < d->n_shapes; i++) {
        TRY(check_shape(0, d->shapes[i]->tp, d->shapes[i]->stages));
        if (d->shapes[i]->ordinal >= REPLICAS_MAX)
            return fail(STATUS_INVALID, "shapes: ordinal %u is not below %d",
                        d->shapes[i]->ordinal, REPLICAS_MAX);
    }
    return STATUS_OK;
}

/* Whether a model can be cut so at all. 0 leaves a number to the planner, which finds a right one;
 * without a context the default is right for every model. */
static status_t check_cut(const plan_sizes_t *sizes, uint32_t tp, uint32_t stages)
{
    uint32_t most = plan_tp_max(&sizes->config);
    if (tp > most)
        return fail(STATUS_INVALID, "tp: %u slices, but the model is cut into at most %u", tp,
                    most);
    if ((uint64_t)tp * stages > PLAN_RANKS_MAX)
        return fail(STATUS_INVALID, "tp x stages: %u x %u are over %d ranks", tp, stages,
                    PLAN_RANKS_MAX);
    plan_run_t layers[PLAN_STAGES_MAX];
    return stages ? plan_stages(sizes, stages, false, layers) : STATUS_OK;
}

/* What its record gets. */
static uint32_t context_of(const Shoal__V1__Deployment *d, uint32_t trained)
{
    if (d->context_max)
        return d->context_max;
    return trained < CONTEXT_DEFAULT ? trained : CONTEXT_DEFAULT;
}

static status_t check_cuts(const plan_sizes_t *sizes, const Shoal__V1__Deployment *d)
{
    TRY(check_cut(sizes, d->tp, d->stages));
    for (size_t i = 0; i < d->n_shapes; i++)
        TRY(check_cut(sizes, d->shapes[i]->tp, d->shapes[i]->stages));
    plan_shape_t shape = {
        .tp = d->tp ? d->tp : 1,
        .stages = d->stages ? d->stages : 1,
        .expert_groups = d->expert_groups,
        .attention_slices = d->attention_slices,
        .attention_replicas = d->attention_replicas,
        .context_max = context_of(d, sizes->config.context_train),
        .kv_tokens_max = d->kv_tokens_max,
        .prefill_tokens_max = d->steps ? d->steps->rows_max : 0,
    };
    plan_need_t need;
    return plan_need(sizes, &shape, 0, 0, &need);
}

static char *model_name_of(arena_t *arena, const char *path)
{
    char *name = model_files_name(path), *copy = copy_text(arena, name);
    free(name);
    return copy;
}

static void copy_shapes(edit_t *edit, record_t *record, Shoal__V1__Shape **shapes, size_t n)
{
    record->shapes = ARENA_NEW_ARRAY(&edit->arena, Shoal__Cluster__V1__ShapeRecord *, n + 1);
    record->n_shapes = n;
    for (size_t i = 0; i < n; i++) {
        record->shapes[i] = ARENA_NEW_ARRAY(&edit->arena, Shoal__Cluster__V1__ShapeRecord, 1);
        shoal__cluster__v1__shape_record__init(record->shapes[i]);
        record->shapes[i]->ordinal = shapes[i]->ordinal;
        record->shapes[i]->tp = shapes[i]->tp;
        record->shapes[i]->stages = shapes[i]->stages;
    }
}

static status_t change_deploy(edit_t *edit, record_t *record, bool exists)
{
    const Shoal__V1__Deployment *d =
        ((const Shoal__V1__DeployRequest *)edit->ask->message)->deployment;
    if (d->version && (uint64_t)edit->mod_revision != d->version)
        return fail(STATUS_STALE, "version: %" PRIu64 " was given, %" PRId64 " stands there",
                    d->version, edit->mod_revision);
    (void)exists; /* a deployment that stands is replaced as a whole */
    shoal__cluster__v1__deployment_record__init(record);
    record->name = copy_text(&edit->arena, d->name);
    record->model_path = copy_text(&edit->arena, d->model_path);
    record->model_name = model_name_of(&edit->arena, d->model_path);
    record->model_digest = copy_text(&edit->arena, edit->digest);
    record->replicas = d->replicas;
    record->tp = d->tp;
    record->stages = d->stages;
    record->expert_groups = d->expert_groups;
    record->attention_slices = d->attention_slices;
    record->attention_replicas = d->attention_replicas;
    record->activations = copy_text(&edit->arena, d->activations[0] ? d->activations : "native");
    record->quantize = copy_text(&edit->arena, d->quantize);
    record->kv = copy_text(&edit->arena, kv_type_is_codes(d->kv) ? d->kv : "");
    record->draft_path = copy_text(&edit->arena, d->draft_path);
    record->draft_digest = copy_text(&edit->arena, edit->draft);
    record->draft_bytes = edit->draft_bytes;
    record->kv_tokens_max = d->kv_tokens_max;
    if (d->steps) {
        record->prefill_tokens_max = d->steps->rows_max;
        record->speculate_max = d->steps->speculate_max;
        record->speculate_off = d->steps->speculate_off;
        record->prefix_cache_off = d->steps->prefix_cache_off;
        record->whole_prompts = d->steps->whole_prompts;
    }
    record->context_max = context_of(d, edit->context_train);
    if (record->context_max > edit->context_train)
        return fail(STATUS_INVALID, "context_max: %u is over the %u that the model was trained for",
                    record->context_max, edit->context_train);
    copy_shapes(edit, record, d->shapes, d->n_shapes);
    return STATUS_OK;
}

/* Hashes the files, which is why it is work; opens them, so that what is no model is refused here and
 * not on every host. */
static void find_model(shell_t *shell, void *take_data)
{
    edit_t *edit = take_data;
    const Shoal__V1__Deployment *d =
        ((const Shoal__V1__DeployRequest *)edit->ask->message)->deployment;
    char *path = NULL, *name = model_name_of(&edit->arena, d->model_path);
    const model_entry_t *entry = NULL;
    status_t status = models_find_file(shell, d->model_path, name, &path);
    if (status == STATUS_OK)
        status = models_entry(shell, path, d->model_digest, d->quantize, &entry);
    if (status == STATUS_OK)
        status = check_cuts(&entry->sizes, d);
    if (status == STATUS_OK)
        status = kv_type_check_model(d->kv, &entry->sizes.config);
    free(path);
    if (status == STATUS_OK)
        status = front_draft_find(shell, d, entry, context_of(d, entry->context_train), edit->draft,
                                  &edit->draft_bytes);
    if (status != STATUS_OK) {
        edit_fail(edit, status);
        return;
    }
    snprintf(edit->digest, sizeof edit->digest, "%s", entry->digest);
    edit->context_train = entry->context_train;
    shell_post(shell, again, edit);
}

static void start_deploy(ask_t *take_ask)
{
    const Shoal__V1__Deployment *d =
        ((const Shoal__V1__DeployRequest *)take_ask->message)->deployment;
    status_t status = check_deployment(d);
    if (status == STATUS_OK)
        status = stores_may_plan(take_ask->shell);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    shell_work(take_ask->shell, find_model, edit_new(take_ask, d->name, change_deploy));
}

/* ---- Scale and DeleteDeployment ---- */

static status_t change_scale(edit_t *edit, record_t *record, bool exists)
{
    const Shoal__V1__ScaleRequest *m = (const Shoal__V1__ScaleRequest *)edit->ask->message;
    if (!exists)
        return fail(STATUS_NOT_FOUND, "no deployment is called \"%s\"", m->name);
    if (m->if_version && (uint64_t)edit->mod_revision != m->if_version)
        return fail(STATUS_STALE, "if_version: %" PRIu64 " was given, %" PRId64 " stands there",
                    m->if_version, edit->mod_revision);
    bool shape = false;
    if (m->has_replicas_case == SHOAL__V1__SCALE_REQUEST__HAS_REPLICAS_REPLICAS)
        record->replicas = m->replicas;
    if (m->has_tp_case == SHOAL__V1__SCALE_REQUEST__HAS_TP_TP) {
        /* What was asked for of the tp before is not asked for of another. */
        if (record->tp != m->tp)
            record->expert_groups = record->attention_slices = record->attention_replicas = 0;
        record->tp = m->tp;
        shape = true;
    }
    if (m->has_stages_case == SHOAL__V1__SCALE_REQUEST__HAS_STAGES_STAGES) {
        record->stages = m->stages;
        shape = true;
    }
    /* A shape for all takes the place of those of single replicas. */
    if (shape)
        record->n_shapes = 0;
    TRY(check_shape(record->replicas, record->tp, record->stages));
    /* Where the model is not open yet the planner's words follow in the deployment's message. */
    core_deployment_view_t view;
    const model_entry_t *entry = NULL;
    if (core_find_deployment(edit->ask->shell->core, record->name, &view))
        entry = models_of(edit->ask->shell, view.tokenizer);
    return entry && shape ? check_cut(&entry->sizes, record->tp, record->stages) : STATUS_OK;
}

static void start_scale(ask_t *take_ask)
{
    const Shoal__V1__ScaleRequest *m = (const Shoal__V1__ScaleRequest *)take_ask->message;
    const char *name = m->name;
    core_deployment_view_t only;
    status_t status = STATUS_OK;
    if (!name[0] && core_find_deployment(take_ask->shell->core, "", &only))
        name = only.name;
    else if (!name[0])
        status = fail(STATUS_INVALID, "name: none is given, and there are %zu deployments",
                      core_n_deployments(take_ask->shell->core));
    if (status == STATUS_OK)
        status = check_name(name);
    if (status == STATUS_OK)
        status = stores_may_plan(take_ask->shell);
    if (status != STATUS_OK)
        ask_fail(take_ask, status);
    else
        edit_read(edit_new(take_ask, name, change_scale));
}

static void on_deleted(void *context, const etcd_result_t *result)
{
    ask_t *ask = context;
    Shoal__V1__DeleteDeploymentResponse response = SHOAL__V1__DELETE_DEPLOYMENT_RESPONSE__INIT;
    if (result->status != STATUS_OK)
        ask_fail(ask, fail(STATUS_UNREACHABLE, "etcd: %s", result->message));
    else if (!result->n_deleted)
        ask_fail(ask, fail(STATUS_NOT_FOUND, "no deployment has this name"));
    else
        ask_reply(ask, &response);
}

static void start_delete(ask_t *take_ask)
{
    const Shoal__V1__DeleteDeploymentRequest *m =
        (const Shoal__V1__DeleteDeploymentRequest *)take_ask->message;
    status_t status = check_name(m->name);
    if (status == STATUS_OK)
        status = stores_may_plan(take_ask->shell);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    char *name = mem_format("deployments/%s", m->name);
    char *key = stores_key(take_ask->shell, name);
    etcd_delete(take_ask->shell->etcd, key, on_deleted, take_ask);
    free(name);
    free(key);
}

const front_method_t front_admin_methods[] = {
    {"/shoal.v1.Admin/Deploy", RPC_UNARY, &shoal__v1__deploy_request__descriptor, start_deploy,
     NULL, NULL},
    {"/shoal.v1.Admin/Scale", RPC_UNARY, &shoal__v1__scale_request__descriptor, start_scale, NULL,
     NULL},
    {"/shoal.v1.Admin/ListDeployments", RPC_UNARY,
     &shoal__v1__list_deployments_request__descriptor, front_list_deployments, NULL, NULL},
    {"/shoal.v1.Admin/DeleteDeployment", RPC_UNARY,
     &shoal__v1__delete_deployment_request__descriptor, start_delete, NULL, NULL},
    {"/shoal.v1.Admin/Drain", RPC_UNARY, &shoal__v1__drain_request__descriptor, front_drain, NULL,
     NULL},
    {"/shoal.v1.Admin/ListHosts", RPC_UNARY, &shoal__v1__list_hosts_request__descriptor,
     front_list_hosts, NULL, NULL},
    {"/shoal.v1.Admin/ListReplicas", RPC_UNARY, &shoal__v1__list_replicas_request__descriptor,
     front_list_replicas, NULL, NULL},
    {"/shoal.v1.Admin/Status", RPC_UNARY, &shoal__v1__status_request__descriptor, front_status,
     NULL, NULL},
    {"/shoal.v1.Admin/Adopt", RPC_UNARY, &shoal__v1__adopt_request__descriptor, front_adopt, NULL,
     NULL},
};
const size_t front_n_admin = sizeof front_admin_methods / sizeof *front_admin_methods;
