/* See amx.h. This file alone is compiled for AMX, and runs only after levels.c has asked the CPU
 * and the operating system. */
#include "kernels/cpu/amx.h"

#include "kernels/cpu/amx_unit.h"
#include "kernels/cpu/amx.inc.h"
#include "kernels/cpu/peak.h"

void matmul_amx(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end, uint32_t row_first,
                uint32_t row_end)
{
    amx_matmul(job, panel_first, panel_end, row_first, row_end);
}

size_t spread_bytes_amx(const kpart_t *part)
{
    return amx_spread_bytes(part);
}

/* Full registers, which no segment of 32 values fills: the unit's rate, not that of a matmul. */
double peak_int8_amx(uint64_t rounds)
{
    amx_config_t config = amx_shape(AMX_TILE_ROWS, AMX_TILE_ROWS, AMX_TILE_ROWS);
    amx_configure(&config);
    rounds /= 16; /* one takes as long as some of the other levels' */
    for (uint64_t r = 0; r < rounds; r++) {
        amx_dot(AMX_SUMS_LOW, AMX_INPUT, AMX_CODES_LOW);
        amx_dot(AMX_SUMS_HIGH, AMX_INPUT, AMX_CODES_HIGH);
        amx_dot(AMX_SUMS_LOW_2, AMX_INPUT_2, AMX_CODES_LOW);
        amx_dot(AMX_SUMS_HIGH_2, AMX_INPUT_2, AMX_CODES_HIGH);
    }
    amx_release();
    return (double)rounds * 4 * AMX_TILE_ROWS * LINE * 64 * 2;
}
