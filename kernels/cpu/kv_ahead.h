/* Memory of a paged KV cache made present before a step writes to it. */
#ifndef SHOAL_KERNELS_CPU_KV_AHEAD_H
#define SHOAL_KERNELS_CPU_KV_AHEAD_H

#include "kernels/cpu/internal.h"

typedef struct kv_ahead kv_ahead_t; /* of a device */

void kv_ahead_add(kkv_t *kv);
void kv_ahead_remove(kkv_t *kv);
/* A step uses this block. NULL is fine. */
void kv_ahead_see(kv_ahead_t *ahead, uint32_t block);
void kv_ahead_close(kv_ahead_t *take_ahead); /* NULL is fine */

#endif
