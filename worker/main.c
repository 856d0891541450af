/* shoal-worker: one program with three lives. `agent` (the default) offers this host to a cluster,
 * `rank` is what an agent spawns, `offline` evaluates or benches a model without any cluster. */
#include <stdio.h>
#include <string.h>

#include "kernels/numerics.h"
#include "worker/agent.h"
#include "worker/offline.h"
#include "worker/rank_process.h"

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "rank") == 0)
        return rank_process_main(argc, argv);
    if (argc >= 2 && strcmp(argv[1], "offline") == 0)
        return offline_main(argc - 1, argv + 1);
    if (argc >= 2 && (strcmp(argv[1], "version") == 0 || strcmp(argv[1], "--version") == 0)) {
        printf("shoal-worker %s\n", SHOAL_VERSION);
        return 0;
    }
    if (NUMERICS_ONE_LEAF) {
        fputs("shoal-worker: built with SHOAL_ONE_LEAF, for measuring only; its text is not that of "
              "other hosts, so no agent starts\n", stderr);
        return 2;
    }
    if (argc >= 2 && strcmp(argv[1], "agent") == 0) {
        argc--;
        argv++;
    }
    return agent_main(argc, argv);
}
