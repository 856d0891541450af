/* See emulated.h. Beside the registers, it is what kernels/cpu/amx.c is. */
#include "emulated.h"

#include "emulated_unit.h"
#include "kernels/cpu/amx.inc.h"

const klevel_t *level_emulated(void)
{
    static klevel_t level;
    level = level_amx;
    level.name = EMULATED_AMX;
    level.matmul = amx_matmul;
    level.spread_bytes = amx_spread_bytes;
    return &level;
}

uint64_t emulated_dots(void)
{
    return __atomic_exchange_n(&unit_dots, 0, __ATOMIC_RELAXED);
}

void emulated_wrong(bool wrong)
{
    unit_is_wrong = wrong;
}
