/* Any bytes as a directory's weights: the first byte chooses the configuration, so that each
 * quantized layout is reached, the rest is the file. What opens is read as the loader would read
 * it: every row of every tensor. The mutator starts from right files now and then, because random
 * bytes do not get past the header's length. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/source.h"
#include "tests/unit/model/safetensors_draft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t n_max);

enum { N_KINDS = 7, BYTES_READ_MAX = 1 << 20 };

static const char *const configs[N_KINDS] = {
    "{}",
    "{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32}}",
    "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}}",
    "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":-1}}",
    "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}}",
    "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
    "\"format\":\"pack-quantized\"}}",
    "{\"model_type\":\"gpt_oss\",\"quantization_config\":{\"quant_method\":\"mxfp4\"}}",
};

/* A right file for each configuration. */
static void make_seed(unsigned kind, buffer_t *out)
{
    static const int64_t shape[2] = {2, 64};
    st_draft_t draft = {0};
    st_add(&draft, "norm.weight", "BF16", "[3]", NULL, 6);
    switch (kind) {
    case 1:
        st_add(&draft, "m.qweight", "I32", "[64,1]", NULL, 256);
        st_add(&draft, "m.qzeros", "I32", "[2,1]", NULL, 8);
        st_add(&draft, "m.scales", "F16", "[2,8]", NULL, 32);
        break;
    case 2:
    case 3:
        st_add(&draft, "m.qweight", "I32", kind == 2 ? "[8,8]" : "[16,8]", NULL,
               kind == 2 ? 256 : 512);
        st_add(&draft, "m.qzeros", "I32", kind == 2 ? "[2,1]" : "[1,2]", NULL, 8);
        st_add(&draft, "m.scales", "F16", kind == 2 ? "[2,8]" : "[1,8]", NULL, kind == 2 ? 32 : 16);
        st_add(&draft, "m.g_idx", "I32", "[64]", NULL, 256);
        break;
    case 4:
        st_add(&draft, "m.weight", "F8_E4M3", "[2,130]", NULL, 260);
        st_add(&draft, "m.weight_scale_inv", "F32", "[1,2]", NULL, 8);
        st_add(&draft, "v.weight", "I8", "[2,32]", NULL, 64);
        st_add(&draft, "v.scale", "F8_E8M0", "[2,2]", NULL, 4);
        break;
    case 5:
        st_add(&draft, "m.weight_packed", "I32", "[2,8]", NULL, 64);
        st_add(&draft, "m.weight_shape", "I64", "[2]", shape, sizeof shape);
        st_add(&draft, "m.weight_scale", "F32", "[2,2]", NULL, 16);
        st_add(&draft, "i.weight", "I8", "[2,8]", NULL, 16);
        st_add(&draft, "i.weight_scale", "BF16", "[2,1]", NULL, 4);
        break;
    case 6:
        st_add(&draft, "e.experts.down_proj_blocks", "U8", "[2,2,1,16]", NULL, 64);
        st_add(&draft, "e.experts.down_proj_scales", "U8", "[2,2,1]", NULL, 4);
        st_add(&draft, "e.experts.gate_up_proj", "BF16", "[2,3,4]", NULL, 48);
        break;
    default: st_add(&draft, "t", "I64", "[2,2]", NULL, 32); break;
    }
    uint8_t first = (uint8_t)kind;
    buffer_append(out, &first, 1);
    st_write(&draft, out);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed)
{
    if (n < 16 || seed % 64 == 0) {
        buffer_t bytes = {0};
        make_seed(seed / 64 % N_KINDS, &bytes);
        if (bytes.size <= n_max) {
            n = bytes.size;
            memcpy(data, bytes.data, n);
        }
        buffer_release(&bytes);
    }
    /* Changes that keep the header's length keep the file readable more often. */
    uint64_t length = 0;
    if (n > 16)
        memcpy(&length, data + 1, sizeof length);
    if (seed % 3 != 0 && length > 0 && length < n - 9) {
        LLVMFuzzerMutate(data + 9, (size_t)length, (size_t)length);
        return n;
    }
    return LLVMFuzzerMutate(data, n, n_max);
}

static void read_tensor(const source_tensor_t *tensor)
{
    if (tensor->bytes > BYTES_READ_MAX) /* a short file can describe long rows (F32 of 2 bits) */
        return;
    uint8_t *rows = mem_new((size_t)tensor->bytes, 1);
    float *values = MEM_NEW_ARRAY(float, tensor->columns);
    uint64_t half = tensor->rows / 2;
    if (source_read_rows(tensor, 0, half, rows) == STATUS_OK &&
        source_read_rows(tensor, half, tensor->rows - half, rows + half * tensor->row_bytes) ==
            STATUS_OK &&
        qtype_info((uint32_t)tensor->type)->is_weight)
        for (uint64_t r = 0; r < tensor->rows; r++)
            qtype_dequantize_row(tensor->type, rows + r * tensor->row_bytes,
                                 (size_t)tensor->columns, values);
    source_tensor_t view;
    if (source_tensor_quantized(tensor, QTYPE_F8S, &view) && view.bytes <= BYTES_READ_MAX) {
        uint8_t *quantized = mem_new((size_t)view.bytes, 1);
        status_t status = source_read_rows(&view, 0, view.rows, quantized);
        CHECK(status == STATUS_OK || status == STATUS_INVALID);
        free(quantized);
    }
    free(values);
    free(rows);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    const char *config = configs[data[0] % N_KINDS];
    /* A copy of its own length, so that a read past the end is seen. */
    uint8_t *bytes = mem_new(n - 1, 1);
    memcpy(bytes, data + 1, n - 1);
    source_t *source;
    if (source_open_directory_bytes("fuzz", config, strlen(config), bytes, n - 1, &source) ==
        STATUS_OK) {
        for (size_t i = 0; i < source_n_tensors(source); i++)
            read_tensor(source_tensor_at(source, i));
        source_close(source);
    }
    free(bytes);
    return 0;
}
