/* The CPU device: its level, its threads, its buffers, and the op table itself. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/fpmode.h"
#include "kernels/cpu/kv_ahead.h"
#include "kernels/cpu/peak.h"
#include "kernels/cpu/queue.h"

static void start_thread(void)
{
    (void)fpmode_enter();
}

static void device_close(kdevice_t *take_device)
{
    if (take_device == NULL)
        return;
    kv_ahead_close(take_device->kv_ahead);
    unmap_pages(take_device->scratch, pool_threads(take_device->pool) * ATTEND_SCRATCH_BYTES);
    unmap_pages(take_device->scratch_block, take_device->scratch_block_bytes);
    unmap_pages(take_device->panels, pool_threads(take_device->pool) * take_device->panel_bytes);
    pool_close(take_device->pool);
    free(take_device->busy);
    free(take_device);
}

status_t device_scratch_reserve(kdevice_t *device, size_t bytes)
{
    if (bytes <= device->scratch_block_bytes)
        return STATUS_OK;
    uint8_t *block = map_pages(bytes);
    if (block == NULL)
        return fail(STATUS_NO_MEMORY, "no memory for %zu bytes of scratch", bytes);
    unmap_pages(device->scratch_block, device->scratch_block_bytes);
    device->scratch_block = block;
    device->scratch_block_bytes = bytes;
    return STATUS_OK;
}

status_t device_panels_reserve(kdevice_t *device, size_t bytes)
{
    /* Whole pages, so that each thread is the first to touch its own. */
    bytes = (bytes + 4095) / 4096 * 4096;
    if (bytes <= device->panel_bytes)
        return STATUS_OK;
    uint8_t *panels = map_pages(pool_threads(device->pool) * bytes);
    if (panels == NULL)
        return fail(STATUS_NO_MEMORY, "no memory for a decoded panel of %zu bytes", bytes);
    unmap_pages(device->panels, pool_threads(device->pool) * device->panel_bytes);
    device->panels = panels;
    device->panel_bytes = bytes;
    return STATUS_OK;
}

static status_t device_open(const kdevice_options_t *options, kdevice_t **own_out)
{
    if (options->mode != KMODE_NATIVE && options->mode != KMODE_F32)
        return fail(STATUS_INVALID, "no such activation mode: %d", (int)options->mode);
    kdevice_t *device = MEM_NEW(kdevice_t);
    device->mode = options->mode;
    status_t status =
        level_choose(options->isa, &device->level, device->refused, sizeof device->refused);
    if (status == STATUS_OK)
        status = pool_open(options->threads, start_thread, &device->pool);
    if (status != STATUS_OK) {
        free(device);
        return status;
    }
    pool_elastic(device->pool);
    device->scratch = map_pages(pool_threads(device->pool) * ATTEND_SCRATCH_BYTES);
    if (device->scratch == NULL) {
        pool_close(device->pool);
        free(device);
        return fail(STATUS_NO_MEMORY, "no memory for the scratch of attention");
    }
    *own_out = device;
    return STATUS_OK;
}

static kdevice_info_t device_info(const kdevice_t *device)
{
    return (kdevice_info_t){
        .backend = "cpu",
        .isa = device->level->name,
        .threads = pool_threads(device->pool),
        .mode = device->mode,
        .refused = device->refused,
    };
}

static status_t buffer_new(kdevice_t *device, size_t bytes, kbuffer_t **own_out)
{
    kbuffer_t *buffer = MEM_NEW(kbuffer_t);
    /* An empty buffer has an address too, so that empty matrices need no special case. */
    *buffer = (kbuffer_t){.device = device, .bytes = bytes, .mapped_bytes = bytes ? bytes : 1};
    buffer->data = map_shared(buffer->mapped_bytes);
    if (buffer->data == NULL) {
        free(buffer);
        return fail(STATUS_NO_MEMORY, "no memory for a buffer of %zu bytes", bytes);
    }
    *own_out = buffer;
    return STATUS_OK;
}

static void buffer_release(kbuffer_t *take_buffer)
{
    if (take_buffer == NULL)
        return;
    unmap_shared(take_buffer->data, take_buffer->mapped_bytes);
    free(take_buffer);
}

static void *buffer_host(kbuffer_t *buffer)
{
    return buffer->data;
}

static size_t buffer_bytes(const kbuffer_t *buffer)
{
    return buffer->bytes;
}

static const kernel_ops_t CPU_OPS = {
    .version = KERNELS_OPS_VERSION,
    .device_open = device_open,
    .device_close = device_close,
    .device_info = device_info,
    .buffer_new = buffer_new,
    .buffer_release = buffer_release,
    .buffer_host = buffer_host,
    .buffer_bytes = buffer_bytes,
    .queue_open = queue_open,
    .queue_close = queue_close,
    .event_record = event_record,
    .event_wait = event_wait,
    .queue_reset = queue_reset,
    .queue_trace = queue_trace,
    .device_peak = device_peak,
    .copy_in = op_copy_in,
    .copy_out = op_copy_out,
    .copy = op_copy,
    .gather_rows = op_gather_rows,
    .host_call = op_host_call,
    .weight_pack = weight_pack,
    .weight_layout = weight_layout,
    .weight_image = weight_image,
    .weight_open_image = weight_open_image,
    .weight_release = weight_release,
    .weight_info = weight_info,
    .table_open = table_open,
    .table_close = table_close,
    .rope_open = rope_open,
    .rope_close = rope_close,
    .kv_open = kv_open,
    .kv_close = kv_close,
    .kv_block_bytes = kv_block_bytes,
    .batch_new = batch_new,
    .batch_release = batch_release,
    .batch_set = op_batch_set,
    .batch_set_plain = op_batch_set_plain,
    .batch_row_errors = batch_row_errors,
    .embed = op_embed,
    .rmsnorm = op_rmsnorm,
    .quantize = op_quantize,
    .matmul = op_matmul,
    .tree_add = op_tree_add,
    .bias_add = op_bias_add,
    .rope = op_rope,
    .kv_append = op_kv_append,
    .attention = op_attention,
    .silu_mul = op_silu_mul,
    .norm_heads = op_norm_heads,
    .layer_norm = op_layer_norm,
    .activate = op_activate,
    .scale = op_scale,
    .softcap = op_softcap,
    .gate_rows = op_gate_rows,
    .add = op_add,
    .mul = op_mul,
    .copy_heads = op_copy_heads,
    .heads_pack = heads_pack,
    .heads_release = heads_release,
    .head_matmul = op_head_matmul,
    .route = op_route,
    .experts_open = experts_open,
    .experts_close = experts_close,
    .experts = op_experts,
    .expert_shared = op_expert_shared,
    .integers_clear = op_integers_clear,
    .integers_add = op_integers_add,
    .index_select = op_index_select,
    .compress = op_compress,
    .hyper_pre = op_hyper_pre,
    .hyper_post = op_hyper_post,
    .fused = &CPU_FUSED_OPS,
};

const kernel_ops_t *kernels_cpu(void)
{
    return &CPU_OPS;
}
