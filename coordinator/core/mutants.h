/* Faults that the simulator plants to prove that it would see them. Each stands for a mistake that
 * systems of this kind have made; production leaves core_config_t.mutant at 0. Two of the five live
 * in the simulator's stores and shell instead (tests/sim/sim.h): an acknowledgement before fsync,
 * and the create-revision as a process number, of which only the elected coordinator's half is
 * here. */
#ifndef SHOAL_COORDINATOR_CORE_MUTANTS_H
#define SHOAL_COORDINATOR_CORE_MUTANTS_H

typedef enum {
    CORE_MUTANT_NONE = 0,
    CORE_MUTANT_NO_FENCE,        /* plans are written without comparing the election key */
    CORE_MUTANT_ACK_BEFORE_FSYNC,
    CORE_MUTANT_CREATE_REVISION, /* a process is numbered by its key's create-revision */
    CORE_MUTANT_MESSAGE_COUNT,   /* a stream's cursor counts messages instead of tokens */
    CORE_MUTANT_CANCEL_ON_DISCONNECT,
    CORE_N_MUTANTS,
} core_mutant_t;

#endif
