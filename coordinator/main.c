/* shoal-coordinator: options, and an exit code. Everything else is in shell.c. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/base/options.h"
#include "coordinator/shell.h"

static status_t check(const shell_options_t *options, size_t n_words)
{
    if (n_words)
        return fail(STATUS_INVALID, "shoal-coordinator takes options only; see --help");
    if (options->id && (!options->id[0] || strlen(options->id) > 128 || strchr(options->id, '/')))
        return fail(STATUS_INVALID, "--id: 1 to 128 bytes without \"/\"");
    if (!strrchr(options->listen, ':'))
        return fail(STATUS_INVALID, "--listen: \"%s\" is not host:port", options->listen);
    struct stat info;
    if (options->data && (stat(options->data, &info) != 0 || !S_ISDIR(info.st_mode)))
        return fail(STATUS_NOT_FOUND, "--data: %s is not a folder", options->data);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    shell_options_t o = {0};
    const option_t table[] = {
        {"listen", OPTION_TEXT, &o.listen, "127.0.0.1:7400", "HOST:PORT",
         "where the public services listen; port 0 takes a free one"},
        {"advertise", OPTION_TEXT, &o.advertise, NULL, "HOST", "host that clients reach it by"},
        {"etcd", OPTION_TEXT, &o.etcd, "127.0.0.1:2379", "URL,…", "etcd's endpoints"},
        {"redis", OPTION_TEXT, &o.redis, "127.0.0.1:6379", "URL",
         "redis://[:password@]host:port or unix:/path"},
        {"cluster", OPTION_TEXT, &o.cluster, "default", "NAME", "of the cluster, a-z, 0-9 and -"},
        {"id", OPTION_TEXT, &o.id, NULL, "NAME", "of this coordinator [host name and port]"},
        {"models", OPTION_TEXT, &o.models, NULL, "PATH,…",
         "folders or files that models are opened from [the path a deployment names]"},
        {"data", OPTION_TEXT, &o.data, NULL, "DIR", "folder for caches"},
        {"store-wait", OPTION_DURATION_MS, &o.store_wait_ms, "30s", "TIME",
         "how long to wait for etcd and Redis at the start"},
        {"jobs-bytes-max", OPTION_INTEGER, &o.jobs_bytes_max, "2G", "BYTES",
         "space reserved by all jobs together", 1e6, 1e15},
        {"detach-ms", OPTION_INTEGER, &o.detach_ms, "10000", "N",
         "how long a request lives without its client", 1, 3600000},
        {"queue-wait-ms", OPTION_INTEGER, &o.queue_wait_ms, "10000", "N",
         "how long a request waits for room before it is refused", 1, 3600000},
        {"waiting-tokens-max", OPTION_INTEGER, &o.waiting_tokens_max, "262144", "N",
         "tokens that may wait for room, a deployment", 1, 1e12},
        {"items-max", OPTION_INTEGER, &o.items_max, "256", "N", "items claimed at once", 1, 4096},
        {"drain-ms", OPTION_INTEGER, &o.drain_ms, "30000", "N",
         "how long SIGTERM lets requests run", 1, 3600000},
        {"lease", OPTION_INTEGER, &o.lease_s, "5", "SECONDS",
         "others see a dead coordinator after this", 2, 60},
        {"work-threads", OPTION_INTEGER, &o.work_threads, "2", "N",
         "threads that parse and tokenize", 1, 64},
        {0}};
    const options_help_t help = {
        "shoal-coordinator [options]",
        "Serves shoal.v1 (Inference, Jobs, Admin): admits requests, keeps batch jobs, and while "
        "elected places replicas on hosts.",
        "shoal-coordinator --listen 0.0.0.0:7400 --etcd http://127.0.0.1:2379 "
        "--redis redis://127.0.0.1:6379 --models /var/lib/shoal/models",
        table};
    log_start("coordinator");
    size_t n_words;
    bool wants_help;
    const char *words[1];
    status_t status = options_read(table, argc, argv, words, 1, &n_words, &wants_help);
    if (status == STATUS_OK && wants_help) {
        options_print_help(&help);
        return 0;
    }
    if (status == STATUS_OK)
        status = check(&o, n_words);
    if (status == STATUS_OK) {
        /* Before any thread exists, so that all inherit it; one thread reads them in turn. */
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        signal(SIGPIPE, SIG_IGN);
        failpoint_start();
        status = shell_run(&o);
    }
    if (status != STATUS_OK)
        fprintf(stderr, "shoal-coordinator: %s\n", status_text());
    return status_exit_code(status);
}
