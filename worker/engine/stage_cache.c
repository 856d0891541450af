/* The caches of a stage: what a position leaves behind, kind of attention by kind. All of them share
 * one numbering of blocks, so that a block holds the same positions in each. */
#include <string.h>

#include "common/model/kv_type.h"
#include "worker/engine/kv.h"
#include "worker/engine/stage.h"

#define KV_BYTES_DEFAULT ((uint64_t)1 << 30)
#define KV_BLOCKS_MAX ((uint64_t)1 << 28)

enum { CACHES_MAX = 10 };

typedef struct {
    uint32_t n;
    struct {
        kkv_shape_t shape;
        kkv_t **own_out;
    } caches[CACHES_MAX];
} caches_t;

static void add(caches_t *caches, kkv_shape_t shape, kkv_t **own_out)
{
    if (shape.n_layers == 0 || shape.n_kv_heads == 0)
        return;
    CHECK(caches->n < CACHES_MAX);
    shape.n_blocks = 1;
    caches->caches[caches->n].shape = shape;
    caches->caches[caches->n++].own_out = own_out;
}

/* The entries of layers of one kind, and what is kept of each position until its entry is made. */
static void add_entries(caches_t *caches, uint32_t rate, uint32_t dim, uint32_t width, bool values,
                        uint32_t n_layers, kkv_t **own_inputs_out, kkv_t **own_entries_out)
{
    kkv_shape_t inputs = {
        .n_layers = n_layers, .n_kv_heads = 1, .key_dim = 2 * width * dim, .exact = true};
    kkv_shape_t entries = {.n_layers = n_layers, .n_kv_heads = 1, .key_dim = dim, .rate = rate};
    if (values) {
        entries.value_dim = dim;
        entries.values_in_keys = true;
    }
    add(caches, inputs, own_inputs_out);
    add(caches, entries, own_entries_out);
}

static void describe_compressed(stage_t *stage, caches_t *caches)
{
    const model_config_t *shape = stage->shape;
    const model_compressed_t *compressed = &shape->compressed;
    stage_entries_t *overlap = &stage->overlap, *stride = &stage->stride;
    kkv_shape_t window = {
        .n_layers = stage->config.layer_count,
        .n_kv_heads = 1,
        .key_dim = shape->head_dim,
        .value_dim = shape->head_dim,
        .values_in_keys = true,
    };
    add(caches, window, &stage->kv);
    for (uint32_t i = 0; i < stage->config.layer_count; i++) {
        stage_layer_t *layer = &stage->layers[i];
        if (layer->kind->rate > 0)
            layer->entries_layer =
                layer->kind->indexed ? overlap->n_layers++ : stride->n_layers++;
    }
    add_entries(caches, compressed->overlap_rate, shape->head_dim, 2, true, overlap->n_layers,
                &overlap->inputs, &overlap->entries);
    add_entries(caches, compressed->overlap_rate, shape->index.head_dim, 2, false,
                overlap->n_layers, &overlap->index_inputs, &overlap->index_entries);
    add_entries(caches, compressed->stride_rate, shape->head_dim, 1, true, stride->n_layers,
                &stride->inputs, &stride->entries);
}

static kkv_type_t type_of(const char *kv)
{
    if (!kv_type_is_codes(kv))
        return KKV_BF16;
    return strcmp(kv, "int8") == 0 ? KKV_INT8 : KKV_FP8;
}

static void describe(stage_t *stage, caches_t *caches)
{
    const model_config_t *shape = stage->shape;
    uint32_t n_kv_heads = stage->slice.kv_heads.count;
    if (n_kv_heads == 0)
        return;
    if (stage->has_compressed) {
        describe_compressed(stage, caches);
        return;
    }
    kkv_shape_t kv = {
        .n_layers = stage->config.layer_count,
        .n_kv_heads = n_kv_heads,
        .head_dim = shape->head_dim,
        .type = type_of(stage->config.kv),
    };
    if (stage->has_latent) {
        kv.key_dim = shape->latent.kv_rank + shape->latent.rope_dim;
        kv.value_dim = shape->latent.kv_rank;
        kv.values_in_keys = true;
    }
    add(caches, kv, &stage->kv);
    if (!stage->has_index)
        return;
    kkv_shape_t index = {
        .n_layers = kv.n_layers, .n_kv_heads = 1, .key_dim = shape->index.head_dim};
    add(caches, index, &stage->index_kv);
}

/* As many blocks as were asked for and fit; they must hold one sequence of context_max. */
status_t stage_open_caches(stage_t *stage)
{
    caches_t caches = {0};
    kmode_t mode = stage->config.activations_f32 ? KMODE_F32 : KMODE_NATIVE;
    uint64_t n = KV_BLOCKS_MAX, block = 0;
    TRY(kv_type_check(stage->config.kv, stage->config.activations_f32));
    TRY(kv_type_check_model(stage->config.kv, stage->shape));
    describe(stage, &caches);
    for (uint32_t i = 0; i < caches.n; i++)
        block += stage->ops->kv_block_bytes(mode, &caches.caches[i].shape);
    if (block > 0)
        n = (stage->config.kv_bytes_max ? stage->config.kv_bytes_max : KV_BYTES_DEFAULT) / block;
    uint64_t wanted = stage->config.kv_tokens_max / stage->cut.attention_replicas / KV_BLOCK_TOKENS;
    if (wanted > 0 && wanted < n)
        n = wanted;
    if (n > KV_BLOCKS_MAX)
        n = KV_BLOCKS_MAX;
    uint64_t least = plan_kv_tokens_held(plan_kv_window(stage->shape), stage->rows_max,
                                         stage->config.context_max);
    if (n < kv_blocks_for(least))
        return fail(
            STATUS_REFUSED,
            "room for %llu KV tokens; one sequence of context_max needs %llu: give the rank more "
            "memory or lower context_max",
            (unsigned long long)n * KV_BLOCK_TOKENS, (unsigned long long)least);
    stage->n_blocks = (uint32_t)n;
    for (uint32_t i = 0; i < caches.n; i++) {
        caches.caches[i].shape.n_blocks = stage->n_blocks;
        TRY(stage->ops->kv_open(stage->device, &caches.caches[i].shape,
                                caches.caches[i].own_out));
    }
    return STATUS_OK;
}

void stage_close_caches(stage_t *stage)
{
    kkv_t *all[] = {
        stage->kv,
        stage->index_kv,
        stage->overlap.inputs,
        stage->overlap.entries,
        stage->overlap.index_inputs,
        stage->overlap.index_entries,
        stage->stride.inputs,
        stage->stride.entries,
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i])
            stage->ops->kv_close(all[i]);
}
