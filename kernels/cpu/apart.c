/* Which columns of weights the values apart of int8 rows need (docs/numerics.md, "Matmul"): most
 * rows take the same few channels apart, so a column is decoded once for many rows. */
#include <string.h>

#include "kernels/cpu/internal.h"

enum { SLOTS = 512, EMPTY = 0xffff };
_Static_assert((int)SLOTS >= 2 * (int)APART_ROWS * (int)NUMERICS_APART, "half of them stay empty");

/* The number of the column of k, a new one where it is not listed yet. */
static uint16_t column_of(kapart_list_t *list, uint16_t slots[SLOTS], uint32_t mask, uint32_t k)
{
    uint32_t slot = k & mask;
    while (slots[slot] != EMPTY && list->k[slots[slot]] != k)
        slot = (slot + 1) & mask;
    if (slots[slot] == EMPTY) {
        list->k[list->n] = k;
        slots[slot] = (uint16_t)list->n++;
    }
    return slots[slot];
}

static void make_list(const kinput_t *layout, const uint8_t *input, size_t row_bytes, uint32_t n,
                      kapart_list_t *list)
{
    uint16_t slots[SLOTS];
    uint32_t mask = 2 * NUMERICS_APART - 1;
    while (mask + 1 < 2 * NUMERICS_APART * n)
        mask = 2 * mask + 1;
    memset(slots, 0xff, (mask + 1) * sizeof slots[0]);
    list->n = 0;
    for (uint32_t row = 0; row < n; row++) {
        const kapart_t *apart = apart_of(layout, input + row * row_bytes);
        list->n_values[row] = (uint8_t)apart->n;
        memcpy(list->value[row], apart->value, sizeof apart->value);
        for (uint32_t i = 0; i < apart->n; i++)
            list->column[row][i] = column_of(list, slots, mask, apart->k[i]);
    }
}

void apart_lists(const kinput_t *layout, const uint8_t *input, size_t row_bytes, uint32_t n,
                 kapart_list_t *out)
{
    for (uint32_t row = 0; row < n; row += APART_ROWS) {
        uint32_t n_rows = n - row < APART_ROWS ? n - row : APART_ROWS;
        make_list(layout, input + row * row_bytes, row_bytes, n_rows, out++);
    }
}
