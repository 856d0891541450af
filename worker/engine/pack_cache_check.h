/* Checking a mapped file of packed weights against its checksums; only pack_cache*.c include it.
 *
 * Threads begin when the file is opened and go through it from its beginning, so that most of it is
 * checked while the rank still opens its device and its tables, which one thread does. Who asks for
 * a weight helps, with others behind it too, until that weight is checked. */
#ifndef SHOAL_WORKER_ENGINE_PACK_CACHE_CHECK_H
#define SHOAL_WORKER_ENGINE_PACK_CACHE_CHECK_H

#include "worker/engine/pack_cache_file.h"

typedef struct pack_check pack_check_t;

/* `map`, `head` and `table` (pack_file_open's) are borrowed until pack_check_end. `threads`: of the
 * rank, the caller's among them; those that cannot be started are done without. */
pack_check_t *pack_check_start(uint8_t *map, const pack_file_head_t *head, const uint8_t *table,
                               uint32_t threads);
/* Whether the entry has the bytes that the table says; returns when that is known. One caller. */
bool pack_check_entry(pack_check_t *check, uint64_t entry);
/* What was not begun is left unchecked. NULL is fine. */
void pack_check_end(pack_check_t *take_check);

#endif
