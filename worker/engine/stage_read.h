/* Reading a rank's rows of the model: made on several threads where the files do not hold them as
 * rows, and given back to the system once they are packed, so that a model is never held twice. And
 * the packed weights that were kept from an earlier start (pack_cache.h). */
#ifndef SHOAL_WORKER_ENGINE_STAGE_READ_H
#define SHOAL_WORKER_ENGINE_STAGE_READ_H

#include "worker/engine/pack_cache.h"
#include "worker/engine/stage_pack.h"

/* Opens what was kept, whose check goes on beside what follows. Once the slice and the cut are
 * known; what is wrong with it is logged. */
void stage_open_kept(stage_t *stage);

/* Before the first weight and after the last; stage_read_end also when loading failed. */
status_t stage_read_begin(stage_t *stage) MUST_USE;
void stage_read_end(stage_t *stage, bool loaded);

/* Rows of the view as they are stored, row_bytes each, by all threads of the rank. */
status_t stage_read_rows(stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                         uint64_t count, uint8_t *out) MUST_USE;
/* The rows will be read soon; they were read. */
void stage_rows_wanted(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                       uint64_t count);
void stage_rows_done(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                     uint64_t count);

/* A layer is loaded: a line of progress now and then. */
void stage_read_progress(stage_t *stage, uint32_t layers_done);

/* What `rows` become by `spec`, in a word: the weight's name in the cache. */
void stage_weight_id(const stage_rows_t *rows, uint32_t n_rows, const kweight_spec_t *spec,
                     char id_out[PACK_CACHE_ID_SIZE]);
/* The weight as it was kept; false when it has to be packed. */
bool stage_weight_kept(stage_t *stage, const kweight_spec_t *spec, const char *id,
                       kweight_t **own_out) MUST_USE;
/* Keeps a weight, wherever it came from. */
void stage_keep_weight(stage_t *stage, const char *id, const kweight_t *weight);

/* What a sealed model has beside packed weights, "values" and the "table" of embeddings, is kept too
 * where it is small: reading it from the model again would mean to check the chunks of the seal
 * around it, most of the file for a norm in each layer. NULL: it has to be read, or is not kept. */
const void *stage_rows_kept(const stage_t *stage, const char *what, const model_tensor_t *tensor,
                            size_t bytes);
/* Keeps what stage_rows_kept did not find, once it was read; also what is not kept may be told. */
void stage_keep_rows(const stage_t *stage, const char *what, const model_tensor_t *tensor,
                     const void *rows, size_t bytes);

#endif
