/* The offline commands' front door. */
#include "worker/offline.h"

#include <stdio.h>
#include <string.h>

#include "common/base/failpoint.h"

int offline_failed(const char *program, status_t status)
{
    fprintf(stderr, "%s: %s\n", program, status_text());
    return status_exit_code(status);
}

void offline_long_output(int argc, char **argv)
{
    static char long_name[] = "--output";
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "-o") == 0)
            argv[i] = long_name;
}

int offline_main(int argc, char **argv)
{
    const char *command = argc >= 2 ? argv[1] : "";
    failpoint_start();
    if (strcmp(command, "eval") == 0)
        return offline_eval(argc - 1, argv + 1);
    if (strcmp(command, "bench") == 0)
        return offline_bench(argc - 1, argv + 1);
    if (strcmp(command, "--help") == 0 || strcmp(command, "help") == 0) {
        puts("usage: shoal-worker offline eval|bench [options]\n"
             "\n"
             "Runs a model without a cluster: `eval` writes logits, `bench` measures speed.\n"
             "`shoal-worker offline eval --help` shows the options and an example.");
        return 0;
    }
    (void)fail(STATUS_INVALID, "\"%s\" is no offline command; there are eval and bench", command);
    return offline_failed("shoal-worker offline", STATUS_INVALID);
}
