/* Level amx over tile registers in plain C (emulated_unit.h): the source of kernels/cpu/amx.c on a
 * machine that has AVX-512 and no AMX. It shows that the bytes are right and the registers are used
 * as their manual says; it says nothing about a real unit, or about speed. */
#ifndef SHOAL_TESTS_KERNELS_EMULATED_H
#define SHOAL_TESTS_KERNELS_EMULATED_H

#include "kernels/cpu/internal.h"

#define EMULATED_AMX "amx emulated"

const klevel_t *level_emulated(void);
/* Products of two registers that were computed since the last call. */
uint64_t emulated_dots(void);
/* From now on some sums are wrong by one, or right again. */
void emulated_wrong(bool wrong);

#endif
