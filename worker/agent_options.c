/* The agent's options and their help: see agent_options.h. */
#include "worker/agent_options.h"

#include "common/base/options.h"

status_t agent_options_read(agent_options_t *to, int argc, char **argv, bool *help_out)
{
    const option_t table[] = {
        {"models", OPTION_TEXT, &to->models, NULL, "PATH,…",
         "GGUF files, or directories of them, that this host offers; new files are seen soon",
         0, 0, NULL},
        {"data", OPTION_TEXT, &to->data, "./shoal-worker-data", "DIR",
         "what has to outlive a restart, and caches; one agent a directory", 0, 0, NULL},
        {"host-id", OPTION_TEXT, &to->host_id, NULL, "NAME", "default: this host's name", 0, 0,
         NULL},
        {"address", OPTION_TEXT, &to->address, "127.0.0.1", "IP",
         "where ranks and leaders listen; other hosts must reach it", 0, 0, NULL},
        {"etcd", OPTION_TEXT, &to->etcd, "http://127.0.0.1:2379", "URL,…", "the cluster's etcd",
         0, 0, NULL},
        {"cluster", OPTION_TEXT, &to->cluster, "default", "NAME", "name of the cluster in etcd",
         0, 0, NULL},
        {"threads", OPTION_INTEGER, &to->threads, "0", "N",
         "cores to offer; 0: all that this process may use", 0, 4096, NULL},
        {"memory", OPTION_INTEGER, &to->memory, "0", "BYTES",
         "memory to offer; 0: 80 % of the machine's or the cgroup's", 0, 1e18, NULL},
        {"pack-cache", OPTION_INTEGER, &to->pack_cache, "64000000000", "BYTES",
         "disk under --data for packed weights, which make the next start of a large model fast; "
         "0: none", 0, 1e18, NULL},
        {"step-timeout", OPTION_DURATION_MS, &to->step_timeout_ms, "30s", "TIME",
         "a rank that waits longer for another gives its epoch up", 1, 3600000, NULL},
        {"load-stuck", OPTION_DURATION_MS, &to->load_stuck_ms, "30s", "TIME",
         "a rank that loads its weights without progress for so long is replaced", 1000, 3600000,
         NULL},
        {"store-wait", OPTION_DURATION_MS, &to->store_wait_ms, "30s", "TIME",
         "how long to wait for etcd at start; then exit code 6", 0, 86400000, NULL},
        {"drain", OPTION_DURATION_MS, &to->drain_ms, "10s", "TIME",
         "how long running sequences may go on after SIGTERM", 0, 86400000, NULL},
        {NULL, OPTION_FLAG, NULL, NULL, NULL, NULL, 0, 0, NULL},
    };
    const char *positional[1];
    size_t n_positional;
    TRY(options_read(table, argc, argv, positional, 1, &n_positional, help_out));
    if (*help_out) {
        const options_help_t help = {
            .usage = "shoal-worker [agent] --models PATH,… [options]",
            .about = "Offers this host's cores, memory and models to a Shoal cluster and runs "
                     "the ranks that are assigned to it.",
            .example = "shoal-worker --models /var/lib/models --data /var/lib/shoal "
                       "--etcd http://10.0.0.1:2379 --address 10.0.0.7",
            .options = table,
        };
        options_print_help(&help);
    } else if (n_positional > 0) {
        return fail(STATUS_INVALID, "\"%s\": no such command; agent, rank, offline and version "
                                    "are", positional[0]);
    } else if (!to->models) {
        return fail(STATUS_INVALID, "--models is missing: a GGUF file or a directory of them");
    }
    return STATUS_OK;
}
