/* `shoal up`: a whole cluster on this machine, for a first look, for development and for tests: a
 * private etcd, a private Redis that loses nothing (AOF, fsync always), coordinators, one host. It
 * starts programs and keeps them running; what they say to each other is none of its business. It
 * never speaks gRPC itself (a process that forks must not), so deploying is a child as well. */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cluster_file.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/supervise.h"
#include "cli/up_detach.h"
#include "common/base/buffer.h"
#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/model/model.h"
#include "common/model/model_files.h"

enum { PORTS_MAX = 12, COORDINATORS_MAX = 8, STOP_GRACE_MS = 15000,
       WAITING_GRACE_MS = 300, LINE_MAX_BYTES = 512 };

typedef struct {
    const char *model, *draft, *name, *data, *etcd, *redis, *cluster, *activations, *kv, *quantize;
    const char *shapes, *format;
    int64_t replicas, tp, stages, expert_groups, attention_slices, attention_replicas;
    int64_t coordinators, context_max, threads, wait_ms, chunk, speculate;
    bool detach, json, no_prefix_cache, whole_prompts;
    char *data_dir, *bin_dir, *etcd_url, *redis_url, *model_path, *draft_path;
    int ports[PORTS_MAX]; /* free ports, taken at start and kept over restarts of the programs */
} up_t;

/* Ports that nobody listens on now. All are held at once, so they differ. */
static status_t pick_ports(int *ports, int n)
{
    int sockets[PORTS_MAX];
    status_t status = STATUS_OK;
    int held = 0;
    for (; held < n && status == STATUS_OK; held++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof address;
        sockets[held] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (sockets[held] < 0 || bind(sockets[held], (struct sockaddr *)&address, size) != 0 ||
            getsockname(sockets[held], (struct sockaddr *)&address, &size) != 0)
            status = fail(STATUS_IO, "no free loopback port: %s", strerror(errno));
        ports[held] = ntohs(address.sin_port);
    }
    for (int i = 0; i < held; i++)
        close(sockets[i]);
    return status;
}

static status_t make_dir(const char *parent, const char *name)
{
    char *path = mem_format("%s/%s", parent, name);
    status_t status = STATUS_OK;
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        status = fail(STATUS_IO, "cannot make %s: %s", path, strerror(errno));
    free(path);
    return status;
}

/* The programs are installed side by side. */
static status_t find_programs(up_t *up)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0)
        return fail(STATUS_IO, "cannot read /proc/self/exe: %s", strerror(errno));
    path[n] = 0;
    *strrchr(path, '/') = 0;
    up->bin_dir = mem_strdup(path);
    static const char *const programs[] = {"shoal-coordinator", "shoal-worker"};
    for (size_t i = 0; i < 2; i++) {
        char *program = mem_format("%s/%s", up->bin_dir, programs[i]);
        bool there = access(program, X_OK) == 0;
        free(program);
        if (!there)
            return fail(STATUS_NOT_FOUND, "%s is not beside %s/shoal; build or install all programs",
                        programs[i], up->bin_dir);
    }
    return STATUS_OK;
}

static status_t need_in_path(const char *program, const char *package)
{
    char *list = mem_strdup(getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
    bool there = false;
    char *rest = list;
    for (char *dir; !there && (dir = strsep(&rest, ":")) != NULL;) {
        char *path = mem_format("%s/%s", dir, program);
        there = access(path, X_OK) == 0;
        free(path);
    }
    free(list);
    if (!there)
        return fail(STATUS_NOT_FOUND, "%s is not installed; run `deploy/install-deps run` or install "
                                      "the package %s, or give the URL of one that runs", program, package);
    return STATUS_OK;
}

static status_t add_etcd(up_t *up, supervisor_t *supervisor)
{
    if (up->etcd != NULL) {
        up->etcd_url = mem_strdup(up->etcd);
        return STATUS_OK;
    }
    TRY(need_in_path("etcd", "etcd-server"));
    up->etcd_url = mem_format("http://127.0.0.1:%d", up->ports[0]);
    child_t *child = supervise_add(supervisor, "etcd", false);
    child_arg(child, "etcd");
    child_arg(child, "--name=shoal");
    child_arg(child, "--data-dir=%s/etcd", up->data_dir);
    child_arg(child, "--listen-client-urls=%s", up->etcd_url);
    child_arg(child, "--advertise-client-urls=%s", up->etcd_url);
    child_arg(child, "--listen-peer-urls=http://127.0.0.1:%d", up->ports[1]);
    child_arg(child, "--initial-advertise-peer-urls=http://127.0.0.1:%d", up->ports[1]);
    child_arg(child, "--initial-cluster=shoal=http://127.0.0.1:%d", up->ports[1]);
    /* One member needs no patience with itself; a short election makes the start fast. */
    child_arg(child, "--heartbeat-interval=20");
    child_arg(child, "--election-timeout=200");
    child_arg(child, "--auto-compaction-retention=1h");
    child_arg(child, "--log-level=warn");
    return STATUS_OK;
}

static status_t add_redis(up_t *up, supervisor_t *supervisor)
{
    if (up->redis != NULL) {
        up->redis_url = mem_strdup(up->redis);
        return STATUS_OK;
    }
    TRY(need_in_path("redis-server", "redis-server"));
    TRY(make_dir(up->data_dir, "redis"));
    child_t *child = supervise_add(supervisor, "redis", false);
    child_arg(child, "redis-server");
    child_arg(child, "--port");
    child_arg(child, "%d", up->ports[2]);
    up->redis_url = mem_format("redis://127.0.0.1:%d", up->ports[2]);
    static const char *const settings[] = {
        "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", "",
        "--maxmemory-policy", "noeviction", "--daemonize", "no"};
    child_arg(child, "--dir");
    child_arg(child, "%s/redis", up->data_dir);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        child_arg(child, "%s", settings[i]);
    return STATUS_OK;
}

static status_t add_programs(up_t *up, supervisor_t *supervisor)
{
    static const char *const names[COORDINATORS_MAX] = {
        "coordinator-1", "coordinator-2", "coordinator-3", "coordinator-4",
        "coordinator-5", "coordinator-6", "coordinator-7", "coordinator-8"};
    for (int64_t i = 0; i < up->coordinators; i++) {
        child_t *child = supervise_add(supervisor, names[i], false);
        child_arg(child, "%s/shoal-coordinator", up->bin_dir);
        child_arg(child, "--id=%s", names[i]);
        child_arg(child, "--listen=127.0.0.1:%d", up->ports[3 + i]);
        child_arg(child, "--etcd=%s", up->etcd_url);
        child_arg(child, "--redis=%s", up->redis_url);
        child_arg(child, "--cluster=%s", up->cluster);
        child_arg(child, "--data=%s/%s", up->data_dir, names[i]);
        TRY(make_dir(up->data_dir, names[i]));
    }
    TRY(make_dir(up->data_dir, "worker"));
    TRY(make_dir(up->data_dir, "models"));
    child_t *child = supervise_add(supervisor, "worker", false);
    child_arg(child, "%s/shoal-worker", up->bin_dir);
    child_arg(child, "agent");
    child_arg(child, "--host-id=local");
    child_arg(child, "--address=127.0.0.1");
    child_arg(child, "--etcd=%s", up->etcd_url);
    child_arg(child, "--cluster=%s", up->cluster);
    child_arg(child, "--data=%s/worker", up->data_dir);
    child_arg(child, "--models=%s%s%s%s%s/models", up->model ? up->model : "", up->model ? "," : "",
              up->draft ? up->draft : "", up->draft ? "," : "", up->data_dir);
    if (up->threads > 0)
        child_arg(child, "--threads=%lld", (long long)up->threads);
    return STATUS_OK;
}

/* The child that brings the cluster to the wanted state. */
static void add_deploy(up_t *up, supervisor_t *supervisor)
{
    child_t *child = supervise_add(supervisor, "deploy", true);
    child_arg(child, "%s/shoal", up->bin_dir);
    child_arg(child, "deploy");
    if (up->name != NULL)
        child_arg(child, "%s", up->name);
    child_arg(child, "--endpoint=127.0.0.1:%d", up->ports[3]);
    child_arg(child, "--model=%s", up->model);
    if (up->draft != NULL)
        child_arg(child, "--draft-model=%s", up->draft);
    child_arg(child, "--replicas=%lld", (long long)up->replicas);
    child_arg(child, "--tp=%lld", (long long)up->tp);
    child_arg(child, "--stages=%lld", (long long)up->stages);
    child_arg(child, "--expert-groups=%lld", (long long)up->expert_groups);
    child_arg(child, "--attention-slices=%lld", (long long)up->attention_slices);
    child_arg(child, "--attention-replicas=%lld", (long long)up->attention_replicas);
    child_arg(child, "--context-max=%lld", (long long)up->context_max);
    child_arg(child, "--activations=%s", up->activations);
    child_arg(child, "--chunk=%lld", (long long)up->chunk);
    child_arg(child, "--speculate=%lld", (long long)up->speculate);
    if (up->no_prefix_cache)
        child_arg(child, "--no-prefix-cache");
    if (up->whole_prompts)
        child_arg(child, "--whole-prompts");
    child_arg(child, "--quantize=%s", up->quantize);
    child_arg(child, "--kv=%s", up->kv);
    if (up->shapes != NULL)
        child_arg(child, "--shapes=%s", up->shapes);
    child_arg(child, "--wait");
    /* It is to say what was wrong before the time is up here. */
    int64_t margin_ms = up->wait_ms > 10000 ? 1000 : up->wait_ms / 10;
    child_arg(child, "--timeout=%lldms", (long long)(up->wait_ms - margin_ms));
}

/* Without a model: the child that sees whether the cluster answers. */
static void add_probe(up_t *up, supervisor_t *supervisor)
{
    child_t *child = supervise_add(supervisor, "probe", true);
    child_arg(child, "%s/shoal", up->bin_dir);
    child_arg(child, "status");
    child_arg(child, "--endpoint=127.0.0.1:%d", up->ports[3]);
}

static status_t write_cluster(const up_t *up, const supervisor_t *supervisor, bool ready)
{
    json_t *content = json_pack("{s:i,s:b,s:s,s:s,s:s,s:[],s:{}}", "supervisor", (int)getpid(), "ready",
                                ready, "etcd", up->etcd_url, "redis", up->redis_url, "cluster",
                                up->cluster, "coordinators", "pids");
    CHECK(content != NULL);
    for (int64_t i = 0; i < up->coordinators; i++) {
        char *endpoint = mem_format("127.0.0.1:%d", up->ports[3 + i]);
        json_array_append_new(json_object_get(content, "coordinators"), json_string(endpoint));
        free(endpoint);
    }
    for (int i = 0; i < supervisor->n_children; i++)
        if (supervisor->children[i].pid != 0)
            json_object_set_new(json_object_get(content, "pids"), supervisor->children[i].name,
                                json_integer(supervisor->children[i].pid));
    status_t status = cluster_file_write(up->data_dir, content);
    json_decref(content);
    return status;
}

/* The last line of a log that is not blank, cut at its newline. */
static void last_line(const up_t *up, const char *name, char out[LINE_MAX_BYTES])
{
    char *path = mem_format("%s/logs/%s.log", up->data_dir, name);
    FILE *log = fopen(path, "re");
    char line[LINE_MAX_BYTES];
    out[0] = 0;
    while (log != NULL && fgets(line, sizeof line, log) != NULL)
        if (line[0] != '\n')
            snprintf(out, LINE_MAX_BYTES, "%s", line);
    if (log != NULL)
        fclose(log);
    out[strcspn(out, "\n")] = 0;
    free(path);
}

static status_t status_of_exit(int code)
{
    switch (code) {
    case -1: return STATUS_TIMEOUT; /* it still ran when the time was up */
    case 2: return STATUS_INVALID;
    case 3: return STATUS_NOT_FOUND;
    case 4: return STATUS_REFUSED;
    case 5: return STATUS_CONFLICT;
    case 6: return STATUS_UNREACHABLE;
    case 7: return STATUS_TIMEOUT;
    default: return STATUS_ABORTED;
    }
}

/* Says what the opening child had to say, which is the reason of a failure, and what the
 * coordinator waits for when it never came to serve. */
static status_t open_failed(const up_t *up, const child_t *opener)
{
    char last[LINE_MAX_BYTES], waits[LINE_MAX_BYTES];
    last_line(up, opener->name, last);
    last_line(up, "coordinator-1", waits);
    const char *store = strstr(waits, "waiting for");
    status_t status = store ? STATUS_UNREACHABLE : status_of_exit(opener->exit_code);
    if (strstr(last, "it waits for") != NULL)
        store = NULL; /* the coordinator said so itself */
    const char *what = up->model ? "the model could not be deployed" : "the cluster does not serve";
    if (last[0] == 0)
        snprintf(last, sizeof last, "not done within %lld ms", (long long)up->wait_ms);
    return fail(status, "%s: %s%s%s (logs: %s/logs)", what, last,
                store ? "; coordinator-1 is " : "", store ? store : "", up->data_dir);
}

/* The line goes to people, cluster.json to programs that asked for JSON. */
static status_t print_ready(const char *data_dir, const char *line, bool json)
{
    fprintf(stderr, "%s\n", line);
    if (!json)
        return STATUS_OK;
    json_t *content;
    TRY(cluster_file_read(data_dir, &content));
    output_json(content, false);
    json_decref(content);
    return output_written();
}

static status_t announce(up_t *up, supervisor_t *supervisor, up_detach_t *detach, uint64_t began_ms)
{
    TRY(write_cluster(up, supervisor, true));
    buffer_t list = {0};
    for (int64_t i = 0; i < up->coordinators; i++)
        buffer_format(&list, " 127.0.0.1:%d", up->ports[3 + i]);
    char *line = mem_format("ready after %.2f s: coordinators%s, data %s",
                            (double)(clock_ms() - began_ms) / 1000, buffer_text(&list), up->data_dir);
    /* Detached, standard output is a log, and the process that was typed prints instead. */
    status_t status = print_ready(up->data_dir, line, up->json && !up->detach);
    up_detach_ready(detach, STATUS_OK, line);
    free(line);
    buffer_release(&list);
    return status;
}

/* Runs until it is interrupted, or until the cluster could not be opened in time. */
static status_t keep_up(up_t *up, supervisor_t *supervisor, up_detach_t *detach)
{
    bool ready = false;
    uint64_t began_ms = clock_ms();
    /* Stopping what was started takes a little of the time, too. */
    int64_t margin_ms = up->wait_ms > 10000 ? 500 : up->wait_ms / 20;
    uint64_t until_ms = began_ms + (uint64_t)(up->wait_ms - margin_ms);
    if (up->model != NULL)
        add_deploy(up, supervisor);
    else
        add_probe(up, supervisor);
    child_t *opener = &supervisor->children[supervisor->n_children - 1];
    while (!command_interrupted) {
        supervise_step(supervisor, ready ? 500 : 50);
        if (!ready && opener->exit_code == 0) {
            ready = true;
            TRY(announce(up, supervisor, detach, began_ms));
            continue;
        }
        bool late = clock_ms() >= until_ms;
        if (!ready && !late && up->model == NULL && opener->exit_code == 6) {
            opener->exit_code = -1; /* nobody serves yet: ask again */
            opener->start_at_ms = clock_ms() + 100;
        } else if (!ready && (late || opener->exit_code > 0)) {
            return open_failed(up, opener);
        }
        if (supervisor->changed)
            TRY(write_cluster(up, supervisor, ready));
    }
    return STATUS_OK;
}

static status_t refuse_second(const up_t *up)
{
    json_t *content;
    if (cluster_file_read(up->data_dir, &content) != STATUS_OK)
        return STATUS_OK;
    pid_t other = (pid_t)json_integer_value(json_object_get(content, "supervisor"));
    json_decref(content);
    if (other > 0 && other != getpid() && kill(other, 0) == 0)
        return fail(STATUS_CONFLICT, "a cluster is up in %s (process %d); `shoal down` stops it",
                    up->data_dir, (int)other);
    return STATUS_OK;
}

static void child_died(int number)
{
    (void)number; /* only there to interrupt the supervisor's pause */
}

static status_t run_cluster(up_t *up, up_detach_t *detach)
{
    static supervisor_t supervisor;
    char *log_dir = mem_format("%s/logs", up->data_dir);
    TRY(make_dir(up->data_dir, "logs"));
    supervisor.log_dir = log_dir;
    struct sigaction action = {.sa_handler = child_died, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGCHLD, &action, NULL);
    TRY(pick_ports(up->ports, PORTS_MAX));
    TRY(add_etcd(up, &supervisor));
    TRY(add_redis(up, &supervisor));
    TRY(add_programs(up, &supervisor));
    status_t status = keep_up(up, &supervisor, detach);
    char reason[STATUS_TEXT_MAX];
    snprintf(reason, sizeof reason, "%s", status_text());
    fprintf(stderr, "stopping …\n");
    /* Programs that wait for a store that is not there have nothing to finish. */
    supervise_stop(&supervisor, status == STATUS_UNREACHABLE ? WAITING_GRACE_MS : STOP_GRACE_MS);
    char *file = mem_format("%s/cluster.json", up->data_dir);
    unlink(file);
    free(file);
    free(log_dir);
    return status == STATUS_OK ? status : fail(status, "%s", reason);
}

/* What cannot be served is said before anything is started. */
static status_t check_model(const char *option, const char *quantize, const char **path, char **own_out)
{
    char *real = model_file_real(*path);
    model_t *model;
    if (real == NULL)
        return fail(STATUS_NOT_FOUND, "%s: %s: %s; `deploy/fetch-model` fetches a small one",
                    option, *path, strerror(errno));
    *path = *own_out = real;
    status_t status = model_open_quantized(real, quantize, &model);
    if (status != STATUS_OK)
        return fail_in(status, "%s", option);
    model_close(model);
    return STATUS_OK;
}

static void release(up_t *up)
{
    free(up->data_dir);
    free(up->bin_dir);
    free(up->etcd_url);
    free(up->redis_url);
    free(up->model_path);
    free(up->draft_path);
}

status_t command_up(int argc, char **argv)
{
    up_t up = {0};
    const option_t options[] = {
        {"model", OPTION_TEXT, &up.model, NULL, "PATH", "GGUF file or model directory to serve; without it the cluster starts empty and waits for `shoal deploy`"},
        {"draft-model", OPTION_TEXT, &up.draft, NULL, "PATH", COMMAND_DRAFT_MODEL_HELP},
        {"name", OPTION_TEXT, &up.name, NULL, "NAME", "name of the deployment [the model's file name]"},
        {"replicas", OPTION_INTEGER, &up.replicas, "1", "R", "copies of the model", 0, 64},
        {"tp", OPTION_INTEGER, &up.tp, "2", "T", "slices of each stage", 1, 64},
        {"stages", OPTION_INTEGER, &up.stages, "2", "S", "pipeline stages", 1, 64},
        {"expert-groups", OPTION_INTEGER, &up.expert_groups, "0", "G", "groups of slices, each with whole experts of its own; 0: the planner chooses", 0, 16},
        {"attention-slices", OPTION_INTEGER, &up.attention_slices, "0", "A", "slices that hold attention and its KV; 0: the planner chooses", 0, 16},
        {"attention-replicas", OPTION_INTEGER, &up.attention_replicas, "1", "R", "replicas of attention among those, each with the KV of its own sequences", 1, 16},
        {"shapes", OPTION_TEXT, &up.shapes, NULL, "LIST", "other shapes for single replicas: 0=2x1,1=1x3 (slices x stages)"},
        {"context-max", OPTION_INTEGER, &up.context_max, "2048", "N", "tokens of prompt and answer", 16, 1048576},
        COMMAND_STEP_OPTIONS(&up.chunk, &up.speculate, &up.no_prefix_cache, &up.whole_prompts),
        {"activations", OPTION_TEXT, &up.activations, "native", "native|f32", "how activations are kept"},
        {"kv", OPTION_TEXT, &up.kv, "bf16", "bf16|int8|fp8", "how keys and values are kept"},
        {"quantize", OPTION_TEXT, &up.quantize, "", "q8|q4|fp8", "quantize F32, F16 and BF16 weights as they are loaded [as stored]"},
        {"coordinators", OPTION_INTEGER, &up.coordinators, "2", "N", "how many", 1, COORDINATORS_MAX},
        {"threads", OPTION_INTEGER, &up.threads, "0", "N", "cores that the host offers; 0 is all", 0, 1024},
        {"data", OPTION_TEXT, &up.data, NULL, "DIR", "state and logs [~/.local/state/shoal]"},
        {"etcd", OPTION_TEXT, &up.etcd, NULL, "URL", "use this etcd instead of a private one"},
        {"redis", OPTION_TEXT, &up.redis, NULL, "URL", "use this Redis instead of a private one"},
        {"cluster", OPTION_TEXT, &up.cluster, "shoal", "NAME", "the cluster's prefix in etcd"},
        {"timeout", OPTION_DURATION_MS, &up.wait_ms, "120s", "TIME", "how long to wait until it serves"},
        {"detach", OPTION_FLAG, &up.detach, NULL, NULL, "return when the cluster is ready; it goes on"},
        OUTPUT_OPTION(&up.format),
        {0},
    };
    const options_help_t help = {
        "shoal up [--model PATH] [options]",
        "Starts a cluster on this machine and keeps it running: a private etcd and Redis (unless URLs\n"
        "are given), coordinators and one host. Ctrl-C or `shoal down` stops it; its jobs stay in --data.",
        "shoal up --model SmolLM2-135M-Instruct.Q4_1.gguf --replicas 2 --tp 2 --stages 1 --detach", options};
    bool done = false;
    TRY(command_options(&help, argc, argv, NULL, 0, 0, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(up.format, &up.json));
    if (up.model != NULL)
        TRY(check_model("--model", up.quantize, &up.model, &up.model_path));
    if (up.draft != NULL)
        TRY(check_model("--draft-model", "", &up.draft, &up.draft_path));
    TRY(find_programs(&up));
    TRY(cluster_data_dir(up.data, &up.data_dir));
    TRY(refuse_second(&up));
    up_detach_t detach = {0};
    if (up.detach) {
        bool parent = false;
        TRY(up_detach_start(&detach, up.data_dir, &parent));
        if (parent) {
            char line[STATUS_TEXT_MAX];
            status_t status = up_detach_wait(&detach, line);
            if (status == STATUS_OK)
                status = print_ready(up.data_dir, line, up.json);
            release(&up);
            return status;
        }
    }
    status_t status = run_cluster(&up, &detach);
    if (status != STATUS_OK)
        up_detach_ready(&detach, status, status_text());
    release(&up);
    return status;
}
