/* See stage_read.h. */
#include "worker/engine/stage_read.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/digest.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/base/pool.h"

enum {
    PROGRESS_MS = 2000,
    READ_ROWS = 32,           /* a thread takes multiples: turned matrices are read faster so */
    READ_ALONE_BYTES = 65536, /* what one thread has read before another has begun */
    KEPT_VALUES_MAX = 1 << 20,  /* a norm, a bias, a small router: they are copied until written */
    KEPT_TABLE_MAX = 256 << 20,
};

/* ---- the cache of packed weights ---- */

/* Everything that decides the bytes: what the model is, how it is quantized, the slice, the cut and
 * the layers, its part of the head, and how the device packs. A model that was sealed since, or sealed
 * anew, is read again, so that its rows are checked against that seal. */
static char *cache_key(const stage_t *stage)
{
    const rank_config_t *config = &stage->config;
    char seal[DIGEST_HEX_SIZE] = "none";
    char *path = manifest_path(model_path(stage->model));
    status_t status = stage->manifest ? digest_of_file(path, seal) : STATUS_OK;
    free(path);
    if (status != STATUS_OK)
        return NULL;
    char copies[32] = "";
    const char *rows = stage->manifest ? "rows\n" : ""; /* stage_rows_kept */
    kmode_t mode = config->activations_f32 ? KMODE_F32 : KMODE_NATIVE;
    if (stage->cut.attention_replicas > 1)
        snprintf(copies, sizeof copies, "replicas %u\n", stage->cut.attention_replicas);
    char head[48] = "";
    if (config->stages > 1 && stage->slice.vocab.count > 0)
        snprintf(head, sizeof head, "head %u+%u\n", stage->slice.vocab.first,
                 stage->slice.vocab.count);
    return mem_format("layout %s\nmodel %s\nseal %s\nquantize %s\nslice %u of %u\nexperts %u\n"
                      "attention %u\nlayers %u+%u of %u\n%s%s%s",
                      stage->ops->weight_layout(mode), config->model_digest, seal,
                      config->quantize ? config->quantize : "", config->slice, config->tp,
                      stage->cut.expert_groups, stage->cut.attention_slices,
                      config->layer_first, config->layer_count, stage->shape->n_layers, head,
                      copies, rows);
}

void stage_open_kept(stage_t *stage)
{
    const rank_config_t *config = &stage->config;
    if (config->pack_cache_bytes == 0 || !config->cache_dir || !config->model_digest)
        return;
    char *key = cache_key(stage);
    if (key == NULL) {
        log_warn("%s; packed weights are not kept", status_text());
        return;
    }
    char *dir = mem_format("%s/packed", config->cache_dir);
    const pack_cache_config_t cache = {
        .dir = dir,
        .key = key,
        .bytes_max = config->pack_cache_bytes,
        .bytes_min = config->pack_cache_bytes_min,
        .threads = config->threads ? config->threads : pool_cpus(),
    };
    if (strlen(key) < PACK_CACHE_KEY_MAX)
        stage->pack_cache = pack_cache_open(&cache);
    free(dir);
    free(key);
}

void stage_weight_id(const stage_rows_t *rows, uint32_t n_rows, const kweight_spec_t *spec,
                     char id_out[PACK_CACHE_ID_SIZE])
{
    digest_t *digest = digest_start();
    char hex[DIGEST_HEX_SIZE];
    for (uint32_t i = 0; i < n_rows; i++) {
        const model_tensor_t *tensor = rows[i].tensor;
        const uint64_t numbers[] = {(uint64_t)tensor->type, tensor->columns,
                                    tensor->row_first + rows[i].first, rows[i].count};
        digest_add_field(digest, tensor->name, strlen(tensor->name));
        digest_add_field(digest, numbers, sizeof numbers);
    }
    const uint32_t run[] = {spec->k_total, spec->leaf_first, spec->leaf_end, spec->leaves_apart};
    digest_add_field(digest, spec->leaf_edges, (spec->n_leaves + 1) * sizeof *spec->leaf_edges);
    digest_add_field(digest, run, sizeof run);
    digest_finish(digest, hex);
    snprintf(id_out, PACK_CACHE_ID_SIZE, "%.32s", hex);
}

bool stage_weight_kept(stage_t *stage, const kweight_spec_t *spec, const char *id,
                       kweight_t **own_out)
{
    size_t bytes;
    const void *image =
        stage->pack_cache ? pack_cache_find(stage->pack_cache, id, &bytes) : NULL;
    if (image == NULL)
        return false;
    if (stage->ops->weight_open_image(stage->device, spec, image, bytes, own_out) == STATUS_OK)
        return true;
    pack_cache_spoiled(stage->pack_cache);
    return false;
}

void stage_keep_weight(stage_t *stage, const char *id, const kweight_t *weight)
{
    const void *image = stage->ops->weight_image(weight);
    if (stage->pack_cache && image != NULL)
        pack_cache_note(stage->pack_cache, id, image, stage->ops->weight_info(weight).packed_bytes);
}

static void rows_id(const char *what, const model_tensor_t *tensor,
                    char id_out[PACK_CACHE_ID_SIZE])
{
    const uint64_t numbers[] = {(uint64_t)tensor->type, tensor->columns, tensor->row_first,
                                tensor->rows};
    char hex[DIGEST_HEX_SIZE];
    digest_t *digest = digest_start();
    digest_add_field(digest, what, strlen(what));
    digest_add_field(digest, tensor->name, strlen(tensor->name));
    digest_add_field(digest, numbers, sizeof numbers);
    digest_finish(digest, hex);
    snprintf(id_out, PACK_CACHE_ID_SIZE, "%.32s", hex);
}

/* Slices of one host would each have a table of their own in memory, which share the model's. */
static bool keeps_rows(const stage_t *stage, const char *what, size_t bytes)
{
    bool is_table = strcmp(what, "table") == 0;
    return stage->manifest && stage->pack_cache && (!is_table || stage->config.tp == 1) &&
           bytes <= (is_table ? KEPT_TABLE_MAX : KEPT_VALUES_MAX);
}

const void *stage_rows_kept(const stage_t *stage, const char *what, const model_tensor_t *tensor,
                            size_t bytes)
{
    char id[PACK_CACHE_ID_SIZE];
    size_t found_bytes;
    if (!keeps_rows(stage, what, bytes))
        return NULL;
    rows_id(what, tensor, id);
    const void *found = pack_cache_find(stage->pack_cache, id, &found_bytes);
    if (found != NULL && found_bytes != bytes) {
        pack_cache_spoiled(stage->pack_cache);
        found = NULL;
    }
    if (found != NULL)
        pack_cache_note(stage->pack_cache, id, found, bytes);
    return found;
}

/* Copied, because the model's file may be another one by the time it is written. */
void stage_keep_rows(const stage_t *stage, const char *what, const model_tensor_t *tensor,
                     const void *rows, size_t bytes)
{
    char id[PACK_CACHE_ID_SIZE];
    if (!keeps_rows(stage, what, bytes))
        return;
    rows_id(what, tensor, id);
    pack_cache_note_copy(stage->pack_cache, id, rows, bytes);
}

/* ---- begin and end ---- */

status_t stage_read_begin(stage_t *stage)
{
    stage->load_told_ms = clock_ms();
    /* Checking against a seal reads more than this rank's rows. */
    if (stage->manifest)
        source_fetch_around(model_source(stage->model), true);
    TRY(pool_open(stage->config.threads, NULL, &stage->readers));
    bool is_kept = stage->pack_cache && pack_cache_has_file(stage->pack_cache);
    /* Slices have their rows alone to check. */
    if (stage->manifest && !is_kept && stage->config.tp == 1) {
        const stage_ahead_config_t config = {
            .model = stage->model,
            .manifest = stage->manifest,
            .layer_first = stage->config.layer_first,
            .layer_count = stage->config.layer_count,
            .has_table = stage->first,
            .has_head = stage->has_head && !stage->config.shared_head,
            .threads = pool_threads(stage->readers),
        };
        stage->ahead = stage_ahead_start(&config);
    }
    return STATUS_OK;
}

void stage_read_end(stage_t *stage, bool loaded)
{
    stage_ahead_end(stage->ahead);
    stage->ahead = NULL;
    pool_close(stage->readers);
    stage->readers = NULL;
    source_forget_all(model_source(stage->model));
    /* Rows that had to be made lay on the heap, which keeps what was freed. */
    malloc_trim(0);
    if (loaded && stage->pack_cache)
        pack_cache_finish(stage->pack_cache);
}

void stage_read_progress(stage_t *stage, uint32_t layers_done)
{
    uint64_t now = clock_ms();
    stage_ahead_reached(stage->ahead, layers_done);
    /* What follows the layers counts as one more. */
    if (stage->pulse)
        atomic_store_explicit(&stage->pulse->loaded_percent,
                              100 * layers_done / (stage->config.layer_count + 1),
                              memory_order_relaxed);
    stage_beat(stage);
    source_forget_all(model_source(stage->model));
    if (now - stage->load_told_ms < PROGRESS_MS)
        return;
    stage->load_told_ms = now;
    log_info("loading: %u of %u layers, %llu MiB", layers_done, stage->config.layer_count,
             (unsigned long long)(stage->weight_bytes >> 20));
}

/* ---- rows ---- */

typedef struct {
    const model_tensor_t *tensor;
    uint64_t first, count;
    uint8_t *out;
    _Atomic uint32_t failed; /* 0, or one more than the first thread that failed */
    status_t status;
    char text[STATUS_TEXT_MAX];
} read_job_t;

static void read_thread(void *argument, uint32_t thread, uint32_t n_threads)
{
    read_job_t *job = argument;
    uint64_t n_groups = (job->count + READ_ROWS - 1) / READ_ROWS;
    uint64_t first = n_groups * thread / n_threads * READ_ROWS;
    uint64_t end = n_groups * (thread + 1) / n_threads * READ_ROWS;
    end = end < job->count ? end : job->count;
    if (first >= end)
        return;
    status_t status = model_read_rows(job->tensor, job->first + first, end - first,
                                      job->out + first * job->tensor->row_bytes);
    uint32_t none = 0;
    if (status == STATUS_OK || !atomic_compare_exchange_strong(&job->failed, &none, thread + 1))
        return;
    job->status = status;
    snprintf(job->text, sizeof job->text, "%s", status_text());
}

status_t stage_read_rows(stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                         uint64_t count, uint8_t *out)
{
    if (count * tensor->row_bytes < READ_ALONE_BYTES)
        return model_read_rows(tensor, first, count, out);
    read_job_t job = {.tensor = tensor, .first = first, .count = count, .out = out};
    pool_run(stage->readers, read_thread, &job);
    return job.failed ? fail(job.status, "%s", job.text) : STATUS_OK;
}

void stage_rows_wanted(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                       uint64_t count)
{
    source_want_rows(model_source(stage->model), tensor->source, tensor->row_first + first, count);
}

void stage_rows_done(const stage_t *stage, const model_tensor_t *tensor, uint64_t first,
                     uint64_t count)
{
    source_forget_rows(model_source(stage->model), tensor->source, tensor->row_first + first,
                       count);
}
