/* The offline commands' front door. */
#include "worker/offline.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/base/failpoint.h"

int offline_failed(const char *program, status_t status)
{
    fprintf(stderr, "%s: %s\n", program, status_text());
    return status_exit_code(status);
}

/* Output that was lost is a failure, too. */
static int finish(const char *program, int code)
{
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout) != 0) && code == 0) {
        (void)fail(STATUS_IO, "output was lost: %s", errno ? strerror(errno) : "writing failed");
        code = offline_failed(program, STATUS_IO);
    }
    return code;
}

int offline_main(int argc, char **argv)
{
    const char *command = argc >= 2 ? argv[1] : "";
    failpoint_start();
    if (strcmp(command, "eval") == 0)
        return finish("shoal eval", offline_eval(argc - 1, argv + 1));
    if (strcmp(command, "bench") == 0)
        return finish("shoal bench", offline_bench(argc - 1, argv + 1));
    if (strcmp(command, "profile") == 0)
        return finish("shoal profile", offline_profile(argc - 1, argv + 1));
    if (strcmp(command, "--help") == 0 || strcmp(command, "help") == 0) {
        puts("usage: shoal-worker offline eval|bench|profile [options]\n"
             "\n"
             "Runs a model without a cluster: `eval` writes logits, `bench` measures\n"
             "speed, `profile` shows where a step's time goes.\n"
             "`shoal-worker offline eval --help` shows the options and an example.");
        return 0;
    }
    (void)fail(STATUS_INVALID, "\"%s\" is no offline command; there are eval, bench and profile", command);
    return offline_failed("shoal-worker offline", STATUS_INVALID);
}
