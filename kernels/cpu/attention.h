/* What the files of the attention op share. */
#ifndef SHOAL_KERNELS_CPU_ATTENTION_H
#define SHOAL_KERNELS_CPU_ATTENTION_H

#include "kernels/cpu/queue.h"

/* Of one attention op, beside its kwork_t: array[0] is the heads' KV heads, array[1] this. */
typedef struct {
    const kkv_t *more;
    uint32_t more_layer, window, selected_ld;
    float softcap;
    uint32_t key_dim, value_dim;
} attention_plan_t;

typedef struct {
    kqueue_t *queue;
    kwork_t *work;
} attention_job_t;

/* A call without pairs for rows of the sequence of `row` with one KV head. What belongs to pairs is
 * set when they are added: clearing a call would cost as much as several keys. */
void attention_open_call(const attention_job_t *job, uint32_t thread, uint32_t row,
                         uint32_t kv_head, kattend_t *call);
/* Whether the pair's query is finite and its row no error so far. */
bool attention_pair_is_good(const kwork_t *work, uint32_t row, uint32_t head);
/* Adds pair (row, head) to the call unless it is not good: then the row is an error and its output
 * NaN. */
void attention_add_pair(const kwork_t *work, uint32_t row, uint32_t head, kattend_t *call);
/* Heads that read kv_head, ascending, into heads_out; returns their number. */
uint32_t attention_heads_of(const kwork_t *work, uint32_t kv_head, uint16_t heads_out[KHEADS_MAX]);

/* attention_share.c: attention over a cache whose tiles are read where they lie: neither lists nor
 * a second cache, and values of their own. */
status_t attention_share(const attention_job_t *job);
/* Scratch that splitting long contexts takes; reserved when a cache is opened. */
size_t attention_states_bytes(const kdevice_t *device, const kpages_t *pages);

#endif
