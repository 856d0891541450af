#include "agent_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/net/rpc_message.h"

#define PREFIX "/shoal/test/"
#define WORKER SHOAL_BIN_DIR "/shoal-worker"
#define MODEL SHOAL_TEST_DATA "/gguf-llama-q8_0/model.gguf"

extern char **environ;

static pid_t spawn_worker(const char *const *arguments, const char *failpoints, const char *log)
{
    const char *argv[32] = {"setpriv", "--pdeathsig", "KILL", WORKER};
    size_t n = 4;
    for (size_t i = 0; arguments[i]; i++)
        argv[n++] = arguments[i];
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    if (failpoints)
        setenv("SHOAL_FAILPOINTS", failpoints, 1);
    else
        unsetenv("SHOAL_FAILPOINTS");
    /* A sanitized rank dies of its crash as a plain one does, instead of exiting. */
    setenv("ASAN_OPTIONS", "abort_on_error=1", 0);
    pid_t pid;
    assert_int_equal(
        posix_spawnp(&pid, argv[0], &files, NULL, (char **)(uintptr_t)argv, environ), 0);
    unsetenv("SHOAL_FAILPOINTS");
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

void cluster_spawn_agent(cluster_t *cluster, const char *failpoints)
{
    const char *arguments[] = {"agent", "--models", MODEL, "--data", cluster->data,
                               "--etcd", cluster->server.endpoint, "--cluster", "test",
                               "--host-id", "a", "--drain", "5s", NULL};
    cluster->agent = spawn_worker(arguments, failpoints, cluster->log);
}

static int wait_code(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int run_agent_to_its_end(const char *const *arguments)
{
    return wait_code(spawn_worker(arguments, NULL, "/dev/null"));
}

int cluster_wait_agent(cluster_t *cluster)
{
    int code = wait_code(cluster->agent);
    cluster->agent = 0;
    return code;
}

static etcd_result_t *get(cluster_t *cluster, const char *key)
{
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_get(cluster->etcd, key, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    return result;
}

bool has_key(cluster_t *cluster, const char *key)
{
    etcd_result_t *result = get(cluster, key);
    bool has = result->n_kvs > 0;
    etcd_result_free(result);
    return has;
}

static ProtobufCMessage *get_message(cluster_t *cluster, const char *key,
                                     const ProtobufCMessageDescriptor *type)
{
    etcd_result_t *result = get(cluster, key);
    ProtobufCMessage *message = NULL;
    if (result->n_kvs > 0)
        assert_int_equal(rpc_unpack(type, result->kvs[0].value, result->kvs[0].value_size, NULL,
                                    &message),
                         STATUS_OK);
    etcd_result_free(result);
    return message;
}

void cluster_start(cluster_t *cluster, const char *failpoints)
{
    memset(cluster, 0, sizeof *cluster);
    snprintf(cluster->data, sizeof cluster->data, "/tmp/shoal-agent-test-XXXXXX");
    assert_non_null(mkdtemp(cluster->data));
    snprintf(cluster->log, sizeof cluster->log, "%s/log", cluster->data);
    etcd_server_start(&cluster->server);
    assert_int_equal(rpc_io_open(0, &cluster->io), STATUS_OK);
    cluster->etcd = etcd_server_client(&cluster->server, cluster->io, NULL);
    cluster_spawn_agent(cluster, failpoints);
    wait_for(has_key(cluster, PREFIX "hosts/a"));
}

void cluster_end(cluster_t *cluster)
{
    if (cluster->agent) {
        kill(cluster->agent, SIGKILL);
        cluster_wait_agent(cluster);
    }
    etcd_close(cluster->etcd);
    rpc_io_close(cluster->io);
    etcd_server_end(&cluster->server);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", cluster->data);
    assert_int_equal(system(command), 0);
}

char *model_digest_of_host(cluster_t *cluster)
{
    Shoal__Cluster__V1__HostRecord *host = (void *)get_message(
        cluster, PREFIX "hosts/a", &shoal__cluster__v1__host_record__descriptor);
    assert_int_equal(host->n_models, 1);
    assert_string_equal(host->models[0]->name, "model");
    char *digest = mem_strdup(host->models[0]->digest);
    rpc_message_free(host);
    return digest;
}

uint64_t put_plan(cluster_t *cluster, const char *digest, uint32_t tp, uint32_t stages)
{
    Shoal__Cluster__V1__ReplicaPlan plan = SHOAL__CLUSTER__V1__REPLICA_PLAN__INIT;
    Shoal__Cluster__V1__RankPlan ranks[16], *list[16];
    char deployment[] = "smol", name[] = "model", activations[] = "f32", host[] = "a";
    char *own_digest = mem_strdup(digest);
    uint32_t layer = 0;
    for (uint32_t i = 0; i < tp * stages; i++) {
        shoal__cluster__v1__rank_plan__init(&ranks[i]);
        uint32_t stage = i / tp;
        ranks[i].rank = i;
        ranks[i].stage = stage;
        ranks[i].slice = i % tp;
        ranks[i].host = host;
        ranks[i].layer_first = stage == 0 ? 0 : layer;
        ranks[i].layer_count = 3 / stages + (stage < 3 % stages ? 1 : 0);
        if (i % tp == tp - 1)
            layer = ranks[i].layer_first + ranks[i].layer_count;
        ranks[i].threads = 1;
        list[i] = &ranks[i];
    }
    plan.deployment = deployment;
    plan.model_name = name;
    plan.model_digest = own_digest;
    plan.activations = activations;
    plan.tp = tp;
    plan.stages = stages;
    plan.context_max = 2048;
    plan.kv_tokens_max = 8192;
    plan.ranks = list;
    plan.n_ranks = tp * stages;
    plan.incarnation = 1;
    plan.formation_deadline_ms = 15000;
    uint8_t packed[4096];
    assert_true(shoal__cluster__v1__replica_plan__get_packed_size(&plan) < sizeof packed);
    size_t n = shoal__cluster__v1__replica_plan__pack(&plan, packed);
    free(own_digest);
    const etcd_op_t ops[2] = {
        {.kind = ETCD_PUT, .key = PREFIX "replicas/smol/0/plan", .value = packed, .value_size = n},
        {.kind = ETCD_PUT, .key = PREFIX "assign/a/smol/0", .value = packed, .value_size = n}};
    const etcd_txn_t txn = {.then = ops, .n_then = 2};
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_txn(cluster->etcd, &txn, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    uint64_t epoch = (uint64_t)result->revision;
    etcd_result_free(result);
    return epoch;
}

void remove_plan(cluster_t *cluster)
{
    must_delete(cluster->etcd, PREFIX "assign/a/smol/0");
}

static bool shows_loading(cluster_t *cluster, uint64_t epoch, uint32_t percent)
{
    const char *key = PREFIX "replicas/smol/0/weights/a";
    if (!has_key(cluster, key))
        return false;
    Shoal__Cluster__V1__LoadingRecord *record =
        (void *)get_message(cluster, key, &shoal__cluster__v1__loading_record__descriptor);
    bool shows = record->epoch == epoch && record->percent == percent;
    rpc_message_free(record);
    return shows;
}

void wait_loading(cluster_t *cluster, uint64_t epoch, uint32_t percent)
{
    wait_for(shows_loading(cluster, epoch, percent));
}

Shoal__Cluster__V1__ActiveRecord *wait_active(cluster_t *cluster, uint64_t epoch)
{
    Shoal__Cluster__V1__ActiveRecord *record = NULL;
    uint64_t end = clock_ms() + WAIT_MS;
    while (clock_ms() < end) {
        record = (void *)get_message(cluster, PREFIX "replicas/smol/0/active",
                                     &shoal__cluster__v1__active_record__descriptor);
        if (record && record->epoch == epoch)
            return record;
        rpc_message_free(record);
        net_test_nap();
    }
    print_error("epoch %llu never became active; see %s\n", (unsigned long long)epoch, cluster->log);
    _fail(__FILE__, __LINE__);
    return NULL;
}

Shoal__Cluster__V1__FailureRecord *wait_failed(cluster_t *cluster, uint64_t epoch)
{
    Shoal__Cluster__V1__FailureRecord *record = NULL;
    uint64_t end = clock_ms() + WAIT_MS;
    while (clock_ms() < end) {
        record = (void *)get_message(cluster, PREFIX "replicas/smol/0/failed",
                                     &shoal__cluster__v1__failure_record__descriptor);
        if (record && record->epoch == epoch)
            return record;
        rpc_message_free(record);
        net_test_nap();
    }
    print_error("epoch %llu never failed; see %s\n", (unsigned long long)epoch, cluster->log);
    _fail(__FILE__, __LINE__);
    return NULL;
}

int64_t pid_of_rank(cluster_t *cluster, uint64_t epoch, uint32_t rank)
{
    char key[128];
    snprintf(key, sizeof key, PREFIX "ranks/smol/0/%llu/%u", (unsigned long long)epoch, rank);
    Shoal__Cluster__V1__RankRecord *record =
        (void *)get_message(cluster, key, &shoal__cluster__v1__rank_record__descriptor);
    assert_non_null(record);
    int64_t pid = record->pid;
    rpc_message_free(record);
    return pid;
}

bool is_alive(int64_t pid)
{
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool read = fscanf(file, "%*d %*s %c", &state) == 1;
    fclose(file);
    return read && state != 'Z' && state != 'X';
}

/* ---- a coordinator's stream ---- */

static status_t send_message(attached_t *attached, const void *message)
{
    buffer_t bytes = {0};
    rpc_pack(message, &bytes);
    status_t status = rpc_stream_send(attached->stream, bytes.data, bytes.size);
    buffer_release(&bytes);
    return status;
}

static status_t read_message(attached_t *attached, Shoal__Worker__V1__LeaderMessage **own_out)
{
    buffer_t bytes = {0};
    bool ended = false;
    status_t status = rpc_stream_read(attached->stream, WAIT_MS, &bytes, &ended);
    if (status == STATUS_OK) {
        assert_false(ended);
        *own_out = shoal__worker__v1__leader_message__unpack(NULL, bytes.size, bytes.data);
        assert_non_null(*own_out);
    }
    buffer_release(&bytes);
    return status;
}

status_t attach(cluster_t *cluster, const char *leader, const char *identity, uint32_t version,
                attached_t *out)
{
    memset(out, 0, sizeof *out);
    const rpc_channel_options_t options = {.endpoint = leader};
    assert_int_equal(rpc_channel_open(cluster->io, &options, &out->channel), STATUS_OK);
    assert_int_equal(rpc_stream_open(out->channel, "/shoal.worker.v1.Engine/Attach", 0,
                                     &out->stream),
                     STATUS_OK);
    Shoal__Worker__V1__CoordinatorMessage message = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__INIT;
    Shoal__Worker__V1__Hello hello = SHOAL__WORKER__V1__HELLO__INIT;
    char name[] = "test", *own_identity = mem_strdup(identity);
    hello.contract_version = version;
    hello.coordinator = name;
    hello.text_identity = own_identity;
    message.message_case = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_HELLO;
    message.hello = &hello;
    Shoal__Worker__V1__LeaderMessage *reply;
    status_t status = send_message(out, &message);
    if (status == STATUS_OK)
        status = read_message(out, &reply);
    free(own_identity);
    if (status != STATUS_OK)
        return status;
    assert_int_equal(reply->message_case, SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_HELLO);
    out->credit = reply->hello->credit_tokens;
    snprintf(out->identity, sizeof out->identity, "%s", reply->hello->text_identity);
    shoal__worker__v1__leader_message__free_unpacked(reply, NULL);
    return STATUS_OK;
}

void detach(attached_t *attached)
{
    rpc_stream_close(attached->stream);
    rpc_channel_close(attached->channel);
}

void admit(attached_t *attached, const char *session, uint32_t max_tokens, uint32_t from_n,
           bool attach_only)
{
    Shoal__Worker__V1__CoordinatorMessage message = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__INIT;
    Shoal__Worker__V1__Admit admit = SHOAL__WORKER__V1__ADMIT__INIT;
    Shoal__V1__Segment segment = SHOAL__V1__SEGMENT__INIT, *segments[1] = {&segment};
    Shoal__V1__TokenIds tokens = SHOAL__V1__TOKEN_IDS__INIT;
    Shoal__V1__Sampling sampling = SHOAL__V1__SAMPLING__INIT;
    uint32_t ids[] = {0, 5, 17, 42};
    char *own_session = mem_strdup(session), role[] = "both";
    tokens.ids = ids;
    tokens.n_ids = 4;
    segment.segment_case = SHOAL__V1__SEGMENT__SEGMENT_TOKENS;
    segment.tokens = &tokens;
    sampling.has_seed_case = SHOAL__V1__SAMPLING__HAS_SEED_SEED;
    sampling.seed = 1;
    sampling.has_max_tokens_case = SHOAL__V1__SAMPLING__HAS_MAX_TOKENS_MAX_TOKENS;
    sampling.max_tokens = max_tokens;
    sampling.ignore_eos = true;
    admit.session = own_session;
    admit.owner = 1;
    admit.from_n = from_n;
    admit.role = role;
    admit.attach_only = attach_only;
    if (!attach_only) {
        admit.prompt = segments;
        admit.n_prompt = 1;
        admit.sampling = &sampling;
    }
    message.message_case = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT;
    message.admit = &admit;
    assert_int_equal(send_message(attached, &message), STATUS_OK);
    free(own_session);
}

static void take_output(const Shoal__Worker__V1__SequenceOutput *output, text_t *text)
{
    if (output->n_ids > 0 && text->joining && text->n == 0 && output->first_position > 0)
        return;
    if (output->n_ids > 0) {
        assert_int_equal(output->first_position, text->n);
        assert_true(text->n + output->n_ids <= 4096);
        memcpy(text->ids + text->n, output->ids, output->n_ids * sizeof *text->ids);
        text->n += (uint32_t)output->n_ids;
    }
    if (output->admitted) {
        text->has_admitted = true;
        text->n_admitted_prompt = output->admitted->n_prompt;
    }
    if (output->ended) {
        assert_false(text->ended);
        text->ended = true;
        text->reason = (int)output->ended->reason;
        snprintf(text->code, sizeof text->code, "%s",
                 output->ended->error ? output->ended->error->code : "");
    }
}

void read_text(attached_t *attached, const char *session, uint32_t at_least, text_t *text)
{
    while (!text->ended && text->n < at_least) {
        Shoal__Worker__V1__LeaderMessage *message;
        assert_int_equal(read_message(attached, &message), STATUS_OK);
        assert_int_equal(message->message_case, SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP);
        attached->credit = message->step->credit_tokens;
        for (size_t i = 0; i < message->step->n_sequences; i++) {
            if (strcmp(message->step->sequences[i]->session, session) == 0)
                take_output(message->step->sequences[i], text);
        }
        shoal__worker__v1__leader_message__free_unpacked(message, NULL);
    }
}
