/* sim (build/NAME/tests/sim/sim): runs seeds of the simulated cluster.
 *   sim --seed N [--mutant M] [--trace]   one seed, reproducing a failure
 *   sim --seeds N [--first F]             seeds F … F+N-1, each failure with its seed
 *   sim --mutants N                       each planted fault must be found within N seeds */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

static const char *const mutant_names[CORE_N_MUTANTS] = {
    [CORE_MUTANT_NONE] = "none",
    [CORE_MUTANT_NO_FENCE] = "no fence",
    [CORE_MUTANT_ACK_BEFORE_FSYNC] = "acknowledged before fsync",
    [CORE_MUTANT_CREATE_REVISION] = "create-revision as process number",
    [CORE_MUTANT_MESSAGE_COUNT] = "message count as resume cursor",
    [CORE_MUTANT_CANCEL_ON_DISCONNECT] = "cancel on disconnect",
};

static int run_seeds(uint64_t first, uint64_t n)
{
    char violation[512];
    uint64_t n_failed = 0;
    for (uint64_t seed = first; seed < first + n; seed++) {
        if (sim_run(seed, CORE_MUTANT_NONE, false, violation))
            continue;
        printf("seed %llu: %s\n  again with: sim --seed %llu --trace\n", (unsigned long long)seed,
               violation, (unsigned long long)seed);
        n_failed++;
    }
    printf("%llu seeds, %llu failed\n", (unsigned long long)n, (unsigned long long)n_failed);
    return n_failed ? 1 : 0;
}

static int run_mutants(uint64_t n)
{
    int result = 0;
    for (uint32_t mutant = 1; mutant < CORE_N_MUTANTS; mutant++) {
        char violation[512];
        uint64_t seed = 1;
        while (seed <= n && sim_run(seed, mutant, false, violation))
            seed++;
        if (seed <= n) {
            printf("mutant %u, %s: caught by seed %llu: %s\n", mutant, mutant_names[mutant],
                   (unsigned long long)seed, violation);
        } else {
            printf("mutant %u, %s: NOT caught within %llu seeds\n", mutant, mutant_names[mutant],
                   (unsigned long long)n);
            result = 1;
        }
    }
    return result;
}

int main(int argc, char **argv)
{
    uint64_t seed = 0, seeds = 0, first = 1, mutants = 0, mutant = 0;
    bool trace = false;
    for (int i = 1; i < argc; i++) {
        uint64_t *value = strcmp(argv[i], "--seed") == 0     ? &seed
                          : strcmp(argv[i], "--seeds") == 0   ? &seeds
                          : strcmp(argv[i], "--first") == 0   ? &first
                          : strcmp(argv[i], "--mutants") == 0 ? &mutants
                          : strcmp(argv[i], "--mutant") == 0  ? &mutant
                                                              : NULL;
        if (strcmp(argv[i], "--trace") == 0) {
            trace = true;
        } else if (value && i + 1 < argc) {
            *value = strtoull(argv[++i], NULL, 10);
        } else {
            fprintf(stderr, "sim: unknown argument %s; see the head of tests/sim/main.c\n",
                    argv[i]);
            return 2;
        }
    }
    if (mutants)
        return run_mutants(mutants);
    if (!seed)
        return run_seeds(first, seeds ? seeds : 500);
    char violation[512];
    bool good = sim_run(seed, (uint32_t)mutant, trace, violation);
    printf("seed %llu: %s\n", (unsigned long long)seed, good ? "good" : violation);
    return good ? 0 : 1;
}
