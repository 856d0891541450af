/* Tile registers in plain C, in the place of kernels/cpu/amx_unit.h: what Intel's manual writes
 * down for LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSSD and TILERELEASE, palette 1. What would
 * fault there ends the program here. */
#ifndef SHOAL_TESTS_KERNELS_EMULATED_UNIT_H
#define SHOAL_TESTS_KERNELS_EMULATED_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/base/status.h"

enum { UNIT_TILES = 8, UNIT_ROWS = 16, UNIT_ROW_BYTES = 64 };

typedef struct {
    uint32_t rows, row_bytes; /* both 0: not to be used */
    uint8_t row[UNIT_ROWS][UNIT_ROW_BYTES];
} unit_tile_t;

typedef struct {
    bool configured;
    unit_tile_t tiles[UNIT_TILES];
} unit_t;

/* One for each thread, as registers are. unit_dots counts the products of all threads; a wrong unit
 * errs by one in the last row and column of each. */
static _Thread_local unit_t unit;
static uint64_t unit_dots;
static bool unit_is_wrong;

static inline void amx_configure(const void *config)
{
    uint8_t bytes[64];
    memcpy(bytes, config, sizeof bytes);
    CHECK(bytes[0] == 1 && bytes[1] == 0);
    for (int i = 2; i < 16; i++)
        CHECK(bytes[i] == 0);
    memset(&unit, 0, sizeof unit);
    for (int i = 0; i < UNIT_TILES * 2; i++) {
        uint32_t row_bytes = bytes[16 + 2 * i] | (uint32_t)bytes[17 + 2 * i] << 8;
        uint32_t rows = bytes[48 + i];
        CHECK(row_bytes <= UNIT_ROW_BYTES && rows <= UNIT_ROWS);
        CHECK((row_bytes == 0) == (rows == 0));
        CHECK(i < UNIT_TILES || rows == 0);
        if (i < UNIT_TILES) {
            unit.tiles[i].rows = rows;
            unit.tiles[i].row_bytes = row_bytes;
        }
    }
    unit.configured = true;
}

static inline void amx_release(void)
{
    memset(&unit, 0, sizeof unit);
}

static inline unit_tile_t *unit_tile(uint32_t tile)
{
    CHECK(unit.configured && tile < UNIT_TILES && unit.tiles[tile].rows > 0);
    return &unit.tiles[tile];
}

static inline void amx_zero(uint32_t tile)
{
    memset(unit_tile(tile)->row, 0, sizeof unit.tiles[0].row);
}

static inline void amx_load(uint32_t tile, const void *from, size_t stride)
{
    unit_tile_t *to = unit_tile(tile);
    amx_zero(tile);
    for (uint32_t r = 0; r < to->rows; r++)
        memcpy(to->row[r], (const uint8_t *)from + r * stride, to->row_bytes);
}

static inline void amx_store(uint32_t tile, void *to, size_t stride)
{
    const unit_tile_t *from = unit_tile(tile);
    for (uint32_t r = 0; r < from->rows; r++)
        memcpy((uint8_t *)to + r * stride, from->row[r], from->row_bytes);
}

/* TDPBSSD: both signed. */
static inline void amx_dot(uint32_t sums, uint32_t a, uint32_t b)
{
    unit_tile_t *to = unit_tile(sums);
    const unit_tile_t *left = unit_tile(a), *right = unit_tile(b);
    CHECK(sums != a && sums != b && a != b);
    CHECK(to->rows == left->rows && to->row_bytes == right->row_bytes);
    CHECK(left->row_bytes == 4 * right->rows && to->row_bytes % 4 == 0);
    for (uint32_t m = 0; m < to->rows; m++) {
        uint32_t row[UNIT_ROW_BYTES / 4];
        memcpy(row, to->row[m], sizeof row);
        for (uint32_t k = 0; k < left->row_bytes / 4; k++)
            for (uint32_t n = 0; n < to->row_bytes / 4; n++)
                for (uint32_t i = 0; i < 4; i++)
                    row[n] += (uint32_t)((int8_t)left->row[m][4 * k + i] *
                                         (int8_t)right->row[k][4 * n + i]);
        row[to->row_bytes / 4 - 1] += unit_is_wrong && m == to->rows - 1;
        memcpy(to->row[m], row, to->row_bytes);
    }
    __atomic_fetch_add(&unit_dots, 1, __ATOMIC_RELAXED);
}

#endif
