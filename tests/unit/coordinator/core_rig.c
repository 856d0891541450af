/* See core_rig.h. */
#include "tests/unit/coordinator/core_rig.h"

#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

static const plan_sizes_t sizes = {
    .config = {.architecture = "llama", .n_layers = 8, .hidden = 32, .n_heads = 8,
               .n_kv_heads = 4, .head_dim = 4, .ffn = 128, .vocab = SIM_VOCAB,
               .context_train = 4096,
               .norm_eps = 1e-5f, .attention_scale = 0.5f},
    .file_bytes = 1 << 20,
    .embedding_values = 4096, .embedding_bytes = 4096, .head_values = 4096, .head_bytes = 4096,
    .norm_values = 64, .norm_bytes = 256, .q_values = 1024, .q_bytes = 1024, .kv_values = 1024,
    .kv_bytes = 1024, .output_values = 1024, .output_bytes = 1024, .ffn_values = 12288,
    .ffn_bytes = 12288,
};

void rig_event(rig_t *rig, const core_event_t *event)
{
    core_step(rig->core, rig->now_ms, event, &rig->actions);
}

void rig_pass(rig_t *rig, uint64_t ms)
{
    uint64_t end = rig->now_ms + ms;
    core_event_t tick = {.kind = CORE_EVENT_TICK};
    uint64_t next;
    while ((next = core_next_timer_ms(rig->core)) <= end) {
        rig->now_ms = next > rig->now_ms ? next : rig->now_ms;
        rig_event(rig, &tick);
    }
    rig->now_ms = end;
}

void rig_clear(rig_t *rig)
{
    core_actions_reset(&rig->actions);
}

size_t rig_count(const rig_t *rig, core_action_kind_t kind)
{
    size_t n = 0;
    for (size_t i = 0; i < rig->actions.n; i++)
        n += rig->actions.items[i].kind == kind;
    return n;
}

core_action_t *rig_last(const rig_t *rig, core_action_kind_t kind)
{
    for (size_t i = rig->actions.n; i > 0; i--)
        if (rig->actions.items[i - 1].kind == kind)
            return &rig->actions.items[i - 1];
    return NULL;
}

void rig_put(rig_t *rig, const char *key, const void *value, size_t size)
{
    core_event_t event = {.kind = CORE_EVENT_KEY};
    rig->revision++;
    event.key = (core_key_t){key, value, size, rig->revision, rig->revision};
    rig_event(rig, &event);
}

void rig_delete(rig_t *rig, const char *key)
{
    core_event_t event = {.kind = CORE_EVENT_KEY};
    event.key = (core_key_t){.key = key, .mod_revision = ++rig->revision};
    rig_event(rig, &event);
}

void rig_listed(rig_t *rig)
{
    static const char *const prefixes[] = {"deployments/", "replicas/", "coordinators/", "hosts/",
                                           "drains/"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        core_event_t event = {.kind = CORE_EVENT_LISTED};
        event.listed.prefix = prefixes[i];
        rig_event(rig, &event);
    }
}

void rig_deploy_as(rig_t *rig, Shoal__Cluster__V1__DeploymentRecord d)
{
    char name[] = "toy", digest[] = "sha256:toy", activations[] = "native";
    d.name = d.model_name = name;
    d.model_digest = digest;
    d.context_max = 128;
    d.activations = activations;
    uint8_t bytes[256];
    rig_put(rig, "deployments/toy", bytes, shoal__cluster__v1__deployment_record__pack(&d, bytes));
}

void rig_deploy(rig_t *rig, uint32_t replicas, uint32_t tp, uint32_t stages)
{
    Shoal__Cluster__V1__DeploymentRecord d = SHOAL__CLUSTER__V1__DEPLOYMENT_RECORD__INIT;
    d.replicas = replicas;
    d.tp = tp;
    d.stages = stages;
    rig_deploy_as(rig, d);
}

static void store(rig_t *rig, core_store_t which)
{
    core_event_t event = {.kind = CORE_EVENT_STORE};
    event.store.store = which;
    event.store.state = CORE_STORE_UP;
    rig_event(rig, &event);
}

void rig_start(rig_t *rig, uint32_t replicas)
{
    rig_start_with(rig, replicas, 0);
}

void rig_start_with(rig_t *rig, uint32_t replicas, uint64_t waiting_tokens_max)
{
    core_config_t config = {.waiting_tokens_max = waiting_tokens_max};
    rig_start_config(rig, replicas, &config);
}

void rig_start_config(rig_t *rig, uint32_t replicas, const core_config_t *with)
{
    *rig = (rig_t){.revision = 1000, .now_ms = 1000};
    core_config_t config = *with;
    if (!config.id)
        config.id = "c0";
    config.endpoint = "c0:1";
    config.build = "test";
    config.seed = config.seed ? config.seed : 7;
    rig->core = core_new(&config);
    store(rig, CORE_STORE_ETCD);
    store(rig, CORE_STORE_REDIS);
    core_event_t event = {.kind = CORE_EVENT_REGISTERED};
    event.registered = (jobs_process_t){1, 100};
    rig_event(rig, &event);
    rig_deploy(rig, replicas, 1, 1);
    core_event_t model = {.kind = CORE_EVENT_MODEL};
    model.model.deployment = "toy";
    model.model.digest = "sha256:toy";
    model.model.tokenizer = oracle_tokenizer();
    model.model.sizes = &sizes;
    rig_event(rig, &model);
}

void rig_stop(rig_t *rig)
{
    core_free(rig->core);
    core_actions_release(&rig->actions);
}

uint64_t rig_replica(rig_t *rig, uint32_t ordinal, const char *host, const char *identity)
{
    char key[64], name[] = "toy", digest[] = "sha256:toy", activations[] = "native";
    char endpoint[64];
    uint8_t bytes[512];
    Shoal__Cluster__V1__RankPlan rank = SHOAL__CLUSTER__V1__RANK_PLAN__INIT;
    rank.host = (char *)(uintptr_t)host;
    rank.layer_count = 8;
    rank.threads = 1;
    Shoal__Cluster__V1__RankPlan *ranks[] = {&rank};
    Shoal__Cluster__V1__ReplicaPlan plan = SHOAL__CLUSTER__V1__REPLICA_PLAN__INIT;
    plan.deployment = name;
    plan.ordinal = ordinal;
    plan.model_digest = digest;
    plan.activations = activations;
    plan.tp = plan.stages = 1;
    plan.context_max = 128;
    plan.formation_deadline_ms = 30000;
    plan.n_ranks = 1;
    plan.ranks = ranks;
    snprintf(key, sizeof key, "replicas/toy/%u/plan", ordinal);
    rig_put(rig, key, bytes, shoal__cluster__v1__replica_plan__pack(&plan, bytes));
    uint64_t epoch = rig->revision;
    Shoal__Cluster__V1__ActiveRecord active = SHOAL__CLUSTER__V1__ACTIVE_RECORD__INIT;
    snprintf(endpoint, sizeof endpoint, "%s:%u", host, ordinal);
    active.epoch = epoch;
    active.leader = endpoint;
    active.text_identity = (char *)(uintptr_t)identity;
    snprintf(key, sizeof key, "replicas/toy/%u/active", ordinal);
    rig_put(rig, key, bytes, shoal__cluster__v1__active_record__pack(&active, bytes));
    return epoch;
}

void rig_host(rig_t *rig, const char *id)
{
    Shoal__Cluster__V1__ModelRecord model = SHOAL__CLUSTER__V1__MODEL_RECORD__INIT;
    char digest[] = "sha256:toy", key[64];
    model.digest = digest;
    Shoal__Cluster__V1__ModelRecord *models[] = {&model};
    Shoal__Cluster__V1__HostRecord r = SHOAL__CLUSTER__V1__HOST_RECORD__INIT;
    r.id = (char *)(uintptr_t)id;
    r.cores = 2;
    r.memory_bytes = 1ull << 32;
    r.n_models = 1;
    r.models = models;
    uint8_t bytes[256];
    snprintf(key, sizeof key, "hosts/%s", id);
    rig_put(rig, key, bytes, shoal__cluster__v1__host_record__pack(&r, bytes));
}

void rig_failure(rig_t *rig, uint32_t ordinal, uint64_t epoch, bool crashed, const char *session)
{
    Shoal__Cluster__V1__FailureRecord f = SHOAL__CLUSTER__V1__FAILURE_RECORD__INIT;
    char *sessions[] = {(char *)(uintptr_t)session}, host[] = "h0", key[64];
    f.epoch = epoch;
    f.host = host;
    f.crashed = crashed;
    f.n_sessions = session != NULL;
    f.sessions = sessions;
    uint8_t bytes[256];
    snprintf(key, sizeof key, "replicas/toy/%u/failed", ordinal);
    rig_put(rig, key, bytes, shoal__cluster__v1__failure_record__pack(&f, bytes));
}

void rig_elect(rig_t *rig, uint64_t create_revision)
{
    core_event_t event = {.kind = CORE_EVENT_ELECTED};
    event.elected.key = "election/coordinator/1";
    event.elected.create_revision = create_revision;
    rig_event(rig, &event);
}

/* ---- links ---- */

uint64_t rig_link(const rig_t *rig)
{
    core_action_t *open = rig_last(rig, CORE_ACTION_LINK_OPEN);
    assert_non_null(open);
    return open->link_open.link;
}

static void deliver(rig_t *rig, uint64_t link, const Shoal__Worker__V1__LeaderMessage *m)
{
    uint8_t bytes[4096];
    core_event_t event = {.kind = CORE_EVENT_LINK_MESSAGE};
    event.link_message.link = link;
    event.link_message.bytes = bytes;
    event.link_message.size = shoal__worker__v1__leader_message__pack(m, bytes);
    rig_event(rig, &event);
}

void rig_hello(rig_t *rig, uint64_t link, uint64_t epoch, uint64_t credit)
{
    Shoal__Worker__V1__HelloReply reply = SHOAL__WORKER__V1__HELLO_REPLY__INIT;
    char identity[] = RIG_IDENTITY;
    reply.epoch = epoch;
    reply.text_identity = identity;
    reply.credit_tokens = credit;
    Shoal__Worker__V1__LeaderMessage m = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_HELLO;
    m.hello = &reply;
    deliver(rig, link, &m);
}

void rig_break(rig_t *rig, uint64_t link)
{
    core_event_t event = {.kind = CORE_EVENT_LINK_BROKEN};
    event.link_broken.link = link;
    event.link_broken.text = "cut";
    rig_event(rig, &event);
}

static void step(rig_t *rig, uint64_t link, Shoal__Worker__V1__SequenceOutput *out)
{
    Shoal__Worker__V1__SequenceOutput *list[] = {out};
    Shoal__Worker__V1__StepOutput s = SHOAL__WORKER__V1__STEP_OUTPUT__INIT;
    s.credit_tokens = 1024;
    s.n_sequences = 1;
    s.sequences = list;
    Shoal__Worker__V1__LeaderMessage m = SHOAL__WORKER__V1__LEADER_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP;
    m.step = &s;
    deliver(rig, link, &m);
}

void rig_output(rig_t *rig, uint64_t link, const char *session, uint64_t owner, uint32_t first,
                const uint32_t *ids, size_t n)
{
    Shoal__Worker__V1__SequenceOutput out = SHOAL__WORKER__V1__SEQUENCE_OUTPUT__INIT;
    out.session = (char *)(uintptr_t)session;
    out.owner = owner;
    out.first_position = first;
    out.ids = (uint32_t *)(uintptr_t)ids;
    out.n_ids = n;
    step(rig, link, &out);
}

void rig_end(rig_t *rig, uint64_t link, const char *session, uint64_t owner,
             Shoal__Worker__V1__SequenceEnded__Reason reason)
{
    Shoal__Worker__V1__SequenceEnded ended = SHOAL__WORKER__V1__SEQUENCE_ENDED__INIT;
    ended.reason = reason;
    ended.finish_reason = SHOAL__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    Shoal__Worker__V1__SequenceOutput out = SHOAL__WORKER__V1__SEQUENCE_OUTPUT__INIT;
    out.session = (char *)(uintptr_t)session;
    out.owner = owner;
    out.ended = &ended;
    step(rig, link, &out);
}

static size_t sent(const rig_t *rig, int kind, Shoal__Worker__V1__CoordinatorMessage **own_out)
{
    size_t n = 0;
    for (size_t i = 0; i < rig->actions.n; i++) {
        const core_action_t *a = &rig->actions.items[i];
        if (a->kind != CORE_ACTION_LINK_SEND)
            continue;
        Shoal__Worker__V1__CoordinatorMessage *m = shoal__worker__v1__coordinator_message__unpack(
            NULL, a->link_send.size, a->link_send.bytes);
        assert_non_null(m);
        bool wanted = (int)m->message_case == kind;
        n += wanted;
        if (wanted && own_out) {
            rig_free(*own_out);
            *own_out = m;
        } else {
            rig_free(m);
        }
    }
    return n;
}

size_t rig_admits(const rig_t *rig, Shoal__Worker__V1__CoordinatorMessage **own_out)
{
    return sent(rig, SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT, own_out);
}

size_t rig_cancels(const rig_t *rig)
{
    return sent(rig, SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL, NULL);
}

void rig_free(Shoal__Worker__V1__CoordinatorMessage *m)
{
    if (m)
        shoal__worker__v1__coordinator_message__free_unpacked(m, NULL);
}

/* ---- clients and jobs ---- */

const char *rig_id(char digit)
{
    static char ids[16][CORE_ID_SIZE];
    static size_t next;
    char *id = ids[next++ % 16];
    memset(id, digit, CORE_ID_SIZE - 1);
    id[CORE_ID_SIZE - 1] = 0;
    return id;
}

static void fill(core_request_t *out, Shoal__V1__Sampling *sampling, request_t *request,
                 char **stop_at, uint32_t max_tokens, const char *stop)
{
    request_draw(5, false, request);
    request->choices = 1;
    request->max_tokens = max_tokens;
    snprintf(request->stop, sizeof request->stop, "%s", stop);
    request_fill(request, sampling, stop_at, out);
}

static void generate(rig_t *rig, uint64_t client, char digit, uint32_t max_tokens, const char *stop,
                     int32_t priority)
{
    request_t request;
    Shoal__V1__Sampling sampling;
    char *stop_at;
    core_event_t event = {.kind = CORE_EVENT_GENERATE};
    fill(&event.generate.request, &sampling, &request, &stop_at, max_tokens, stop);
    memcpy(event.generate.request.id, rig_id(digit), CORE_ID_SIZE);
    event.generate.request.priority = priority;
    event.generate.client = client;
    rig_event(rig, &event);
}

void rig_generate(rig_t *rig, uint64_t client, char digit, uint32_t max_tokens, const char *stop)
{
    generate(rig, client, digit, max_tokens, stop, 0);
}

void rig_generate_for(rig_t *rig, uint64_t client, char digit, uint32_t max_tokens,
                      int32_t priority)
{
    generate(rig, client, digit, max_tokens, "", priority);
}

void rig_client(rig_t *rig, core_event_kind_t kind, uint64_t client)
{
    core_event_t event = {.kind = kind};
    event.client.client = client;
    rig_event(rig, &event);
}

void rig_resume(rig_t *rig, uint64_t client, char digit, uint32_t n)
{
    core_event_t event = {.kind = CORE_EVENT_RESUME};
    event.resume.client = client;
    event.resume.id = rig_id(digit);
    event.resume.n = &n;
    event.resume.n_choices = 1;
    rig_event(rig, &event);
}

void rig_claimed(rig_t *rig, uint64_t op, uint64_t index, uint64_t attempt, uint64_t deaths)
{
    request_t request;
    Shoal__V1__Sampling sampling;
    char *stop_at;
    core_claimed_t item = {.ref = {"job", index, attempt}, .deaths = deaths};
    fill(&item.request, &sampling, &request, &stop_at, 8, "");
    core_event_t event = {.kind = CORE_EVENT_CLAIMED};
    event.claimed.op = op;
    event.claimed.code = JOBS_OK;
    event.claimed.items = &item;
    event.claimed.n_items = 1;
    rig_event(rig, &event);
}

void rig_jobs_done(rig_t *rig, uint64_t op, jobs_code_t code, uint64_t number)
{
    core_event_t event = {.kind = CORE_EVENT_JOBS_DONE};
    event.jobs_done.op = op;
    event.jobs_done.code = code;
    event.jobs_done.number = number;
    rig_event(rig, &event);
}
