/* Level "amx": level avx512 with many rows of integer forms multiplied by tile registers (AMX_TILE,
 * AMX_INT8). Only emulated so far: tests run this very source over tile registers in plain C, and
 * no machine with real ones has run it. */
#ifndef SHOAL_KERNELS_CPU_AMX_H
#define SHOAL_KERNELS_CPU_AMX_H

#include "kernels/cpu/internal.h"

/* Rows from which tile registers multiply; fewer go to level_avx512, whose kernels take as many
 * side by side. */
enum { AMX_ROWS_MIN = 7 };

void matmul_amx(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end, uint32_t row_first,
                uint32_t row_end);
size_t spread_bytes_amx(const kpart_t *part);

#endif
