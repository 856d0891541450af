/* `shoal down`: stops the cluster that `shoal up` started here, and waits until it is gone. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cluster_file.h"
#include "cli/command.h"
#include "cli/output.h"
#include "common/base/clock.h"

static status_t wait_until_gone(pid_t pid, int64_t timeout_ms)
{
    uint64_t until = clock_ms() + (uint64_t)timeout_ms;
    while (kill(pid, 0) == 0) {
        if (command_interrupted)
            return fail(STATUS_CANCELLED, "interrupted; the cluster goes on stopping");
        if (clock_ms() >= until)
            return fail(STATUS_TIMEOUT, "process %d still runs; give it longer with --timeout", (int)pid);
        struct timespec pause = {.tv_nsec = 10000000};
        nanosleep(&pause, NULL);
    }
    return STATUS_OK;
}

static status_t stop_cluster(const char *dir, int64_t timeout_ms)
{
    json_t *content;
    TRY(cluster_file_read(dir, &content));
    pid_t pid = (pid_t)json_integer_value(json_object_get(content, "supervisor"));
    json_decref(content);
    if (pid <= 1 || (kill(pid, SIGTERM) != 0 && errno == ESRCH))
        return fail(STATUS_NOT_FOUND, "the cluster's process %d is gone already", (int)pid);
    return wait_until_gone(pid, timeout_ms);
}

status_t command_down(int argc, char **argv)
{
    cluster_options_t where = {0};
    const char *format;
    int64_t timeout_ms;
    const option_t options[] = {
        CLUSTER_DATA_OPTION(where),
        {"timeout", OPTION_DURATION_MS, &timeout_ms, "60s", "TIME", "how long to wait for its end"},
        OUTPUT_OPTION(&format),
        {0},
    };
    const options_help_t help = {"shoal down [options]",
                                 "Stops the cluster that `shoal up` started. Its jobs stay in --data.",
                                 "shoal down", options};
    bool done = false, json = false;
    TRY(command_options(&help, argc, argv, NULL, 0, 0, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    char *dir;
    TRY(cluster_data_dir_find(where.data, &dir));
    status_t status = stop_cluster(dir, timeout_ms);
    if (status == STATUS_OK) {
        static const char *const columns[] = {"data", "state"};
        json_t *rows = json_pack("[{s:s,s:s}]", "data", dir, "state", "down");
        if (json)
            output_json(json_array_get(rows, 0), false);
        else
            output_table(columns, sizeof columns / sizeof *columns, rows);
        json_decref(rows);
    }
    free(dir);
    return status;
}
