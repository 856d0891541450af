/* The rows of a step, their row errors, and the embedding lookup. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/cpu/kv_ahead.h"
#include "kernels/cpu/queue.h"

status_t batch_new(kdevice_t *device, uint32_t rows_max, uint32_t blocks_max, kbatch_t **own_out)
{
    (void)device;
    if (rows_max < 1 || rows_max > KBATCH_ROWS_MAX || blocks_max > 1u << 28)
        return fail(STATUS_INVALID, "a batch of %u rows and %u blocks: 1 to %d rows are possible",
                    rows_max, blocks_max, KBATCH_ROWS_MAX);
    kbatch_t *batch = MEM_NEW(kbatch_t);
    batch->rows_max = rows_max;
    batch->blocks_max = blocks_max;
    batch->rows = MEM_NEW_ARRAY(kbatch_row_t, rows_max);
    batch->table_first = MEM_NEW_ARRAY(uint32_t, (size_t)rows_max + 1);
    batch->blocks = MEM_NEW_ARRAY(uint32_t, blocks_max);
    batch->errors = MEM_NEW_ARRAY(uint8_t, rows_max);
    *own_out = batch;
    return STATUS_OK;
}

void batch_release(kbatch_t *take_batch)
{
    if (take_batch == NULL)
        return;
    free(take_batch->rows);
    free(take_batch->table_first);
    free(take_batch->blocks);
    free(take_batch->errors);
    free(take_batch);
}

void batch_row_error(kbatch_t *batch, uint32_t row)
{
    /* Threads may flag the same row: a relaxed store of the same byte. */
    __atomic_store_n(&batch->errors[row], 1, __ATOMIC_RELAXED);
}

uint32_t batch_row_errors(const kbatch_t *batch, uint8_t *flags_out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++)
        n += batch->errors[i];
    if (flags_out != NULL)
        memcpy(flags_out, batch->errors, batch->n_rows);
    return n;
}

/* array[0]: rows; array[1]: first block of each table, and the end; array[2]: all block ids. */
static status_t run_batch_set(kqueue_t *queue, kwork_t *work)
{
    kbatch_t *batch = work->batch;
    const kbatch_row_t *rows = work->array[0];
    batch->n_rows = work->n;
    batch->n_tables = work->n_tables;
    if (rows != NULL)
        memcpy(batch->rows, rows, work->n * sizeof *rows);
    memset(batch->errors, 0, work->n);
    const kbatch_table_t *tables = work->array[1];
    const uint32_t *kept_blocks = work->array[2];
    uint32_t at = 0, highest = 0;
    for (uint32_t i = 0; i < work->n_tables; i++) {
        const uint32_t *from = kept_blocks != NULL ? kept_blocks + at : tables[i].blocks;
        batch->table_first[i] = at;
        memcpy(batch->blocks + at, from, tables[i].n_blocks * sizeof *from);
        at += tables[i].n_blocks;
    }
    for (uint32_t i = 0; i < at; i++)
        highest = batch->blocks[i] > highest ? batch->blocks[i] : highest;
    kv_ahead_see(queue->device->kv_ahead, highest);
    batch->table_first[work->n_tables] = at;
    return STATUS_OK;
}

static status_t check_rows(const kbatch_row_t *rows, uint32_t n_rows, const kbatch_table_t *tables,
                           uint32_t n_tables, uint32_t *position_max_out)
{
    uint32_t position_max = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        const kbatch_row_t *row = &rows[i];
        if (row->sequence >= n_tables)
            return fail(STATUS_INVALID, "row %u belongs to sequence %u of %u", i, row->sequence,
                        n_tables);
        if (row->position / KKV_BLOCK_TOKENS >= tables[row->sequence].n_blocks)
            return fail(STATUS_INVALID, "row %u at position %u: its sequence has %u blocks of %d",
                        i, row->position, tables[row->sequence].n_blocks, KKV_BLOCK_TOKENS);
        if (i > 0 && rows[i - 1].sequence == row->sequence &&
            rows[i - 1].position + 1 != row->position)
            return fail(STATUS_INVALID, "row %u at position %u follows position %u", i,
                        row->position, rows[i - 1].position);
        position_max = row->position > position_max ? row->position : position_max;
    }
    *position_max_out = position_max;
    return STATUS_OK;
}

status_t op_batch_set(kqueue_t *queue, kbatch_t *batch, const kbatch_row_t *rows, uint32_t n_rows,
                      const kbatch_table_t *tables, uint32_t n_tables)
{
    uint64_t n_blocks = 0;
    if (n_rows > batch->rows_max || n_tables > batch->rows_max)
        return fail(STATUS_INVALID, "%u rows of %u sequences: the batch has room for %u", n_rows,
                    n_tables, batch->rows_max);
    for (uint32_t i = 0; i < n_tables; i++)
        n_blocks += tables[i].n_blocks;
    if (n_blocks > batch->blocks_max)
        return fail(STATUS_INVALID, "%llu blocks: the batch has room for %u",
                    (unsigned long long)n_blocks, batch->blocks_max);
    uint32_t position_max;
    TRY(check_rows(rows, n_rows, tables, n_tables, &position_max));
    batch->declared_rows = n_rows;
    batch->declared_plain = false;
    batch->declared_position_max = position_max;
    kwork_t work = {.run = run_batch_set, .batch = batch, .n = n_rows, .n_tables = n_tables};
    work_array(&work, 0, rows, n_rows * sizeof *rows);
    work_array(&work, 1, tables, n_tables * sizeof *tables);
    if (queue->kind == KQUEUE_NOW)
        return queue_submit(queue, &work, NULL, 0);
    /* The tables point at the caller's arrays, so a late queue keeps the ids themselves. */
    uint32_t *blocks = MEM_NEW_ARRAY(uint32_t, n_blocks);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n_tables; at += tables[i].n_blocks, i++)
        memcpy(blocks + at, tables[i].blocks, tables[i].n_blocks * sizeof *blocks);
    work_array(&work, 2, blocks, n_blocks * sizeof *blocks);
    status_t status = queue_submit(queue, &work, NULL, 0);
    free(blocks);
    return status;
}

status_t op_batch_set_plain(kqueue_t *queue, kbatch_t *batch, uint32_t n_rows)
{
    if (n_rows > batch->rows_max)
        return fail(STATUS_INVALID, "%u rows: the batch has room for %u", n_rows, batch->rows_max);
    batch->declared_rows = n_rows;
    batch->declared_plain = true;
    kwork_t work = {.run = run_batch_set, .batch = batch, .n = n_rows};
    return queue_submit(queue, &work, NULL, 0);
}

status_t table_open(kdevice_t *device, uint32_t qtype, const void *rows, size_t bytes,
                    uint32_t n_rows, uint32_t k, ktable_t **own_out)
{
    (void)device;
    const qtype_info_t *info = qtype_info(qtype);
    uint64_t row_bytes;
    if (info == NULL || !info->is_weight)
        return fail(STATUS_UNSUPPORTED, "embedding rows of type %s cannot be read",
                    qtype_name(qtype));
    if (k > KWEIGHT_K_MAX || !qtype_row_bytes(qtype, k, &row_bytes))
        return fail(STATUS_INVALID, "embedding rows of %u values are not whole %s blocks", k,
                    qtype_name(qtype));
    if (row_bytes * n_rows > bytes)
        return fail(STATUS_INVALID, "%u embedding rows of %llu bytes, but %zu bytes", n_rows,
                    (unsigned long long)row_bytes, bytes);
    ktable_t *table = MEM_NEW(ktable_t);
    *table =
        (ktable_t){.qtype = qtype, .n_rows = n_rows, .k = k, .row_bytes = row_bytes, .rows = rows};
    *own_out = table;
    return STATUS_OK;
}

void table_close(ktable_t *take_table)
{
    free(take_table);
}

static status_t run_embed(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    const ktable_t *table = work->table;
    for (uint32_t i = 0; i < work->batch->n_rows; i++) {
        uint32_t token = work->batch->rows[i].token;
        if (token >= table->n_rows)
            return fail(STATUS_INVALID, "row %u: token %u of a vocabulary of %u", i, token,
                        table->n_rows);
        qtype_dequantize_row((qtype_t)table->qtype, table->rows + token * table->row_bytes,
                             table->k,
                             (float *)(void *)(work->to + (size_t)i * table->k * sizeof(float)));
    }
    return STATUS_OK;
}

status_t op_embed(kqueue_t *queue, kbatch_t *batch, const ktable_t *table, kref_t out)
{
    if (batch->declared_plain)
        return fail(STATUS_INVALID, "embed: the batch has no tokens");
    size_t bytes = matrix_bytes(batch->declared_rows, table->k, table->k);
    /* Dequantizing is defined in the default floating-point mode. */
    kwork_t work = {.run = run_embed, .host = true, .batch = batch, .table = table};
    work.to = ref_bytes(queue, out, bytes, "embed output");
    if (work.to == NULL)
        return STATUS_INVALID;
    return queue_submit(queue, &work, work.to, bytes);
}
