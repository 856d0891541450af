/* See hf_convert.h. All arithmetic here is exact but the one product of a dequantized F32 value,
 * which is the product that the stored format defines. */
#include "common/model/hf_convert.h"

#include <math.h>
#include <string.h>

enum { I8S_VALUES = 32, TILE_ROWS = 64, TURN_ROWS = 32 };

static const uint8_t awq_nibble_of_column[8] = {0, 4, 1, 5, 2, 6, 3, 7};

/* --- scales --- */

static float load_scale(const safetensors_tensor_t *scale, uint64_t i)
{
    uint16_t half;
    float value;
    switch (scale->dtype) {
    case SAFETENSORS_F16:
        memcpy(&half, scale->data + 2 * i, sizeof half);
        return qtype_f16_to_f32(half);
    case SAFETENSORS_BF16:
        memcpy(&half, scale->data + 2 * i, sizeof half);
        return qtype_bf16_to_f32(half);
    case SAFETENSORS_F8_E8M0: { /* 2^(e - 127); 255 is no number */
        uint8_t e = scale->data[i];
        return qtype_bits_to_f32(e == 0 ? 0x00400000u : (uint32_t)e << 23);
    }
    default:
        memcpy(&value, scale->data + 4 * i, sizeof value);
        return value;
    }
}

static status_t bad_scale(const source_tensor_t *tensor, uint64_t row)
{
    return fail(STATUS_INVALID, "tensor %.100s: the scale of a block in row %llu is not a finite "
                "number", tensor->name, (unsigned long long)row);
}

static status_t read_scale(const source_tensor_t *tensor, uint64_t row, uint64_t i, float *out)
{
    float value = tensor->parts->scale == NULL ? 1.0f : load_scale(tensor->parts->scale, i);
    if (!isfinite(value))
        return bad_scale(tensor, row);
    *out = value;
    return STATUS_OK;
}

/* --- AWQ and GPTQ: inputs run down, outputs across --- */

typedef struct {
    uint64_t row; /* of the whole tensor: the output */
    uint64_t outputs;
    int32_t zero;
    float scale;
    uint64_t group;
} cell_t;

/* Zero point and scale of one group of one output. */
static status_t load_cell(const source_tensor_t *tensor, uint64_t group, cell_t *cell)
{
    const source_parts_t *parts = tensor->parts;
    cell->group = group;
    TRY(read_scale(tensor, cell->row, group * cell->outputs + cell->row, &cell->scale));
    cell->zero = parts->zero_offset;
    if (parts->zero != NULL) {
        uint32_t per_word = 32 / parts->bits;
        uint64_t value = parts->read == hf_read_awq ? awq_nibble_of_column[cell->row % 8]
                                                    : cell->row;
        uint64_t word = group * (cell->outputs / per_word) + cell->row / per_word;
        cell->zero += (int32_t)hf_unpack(parts->zero->data, word, value, parts->bits);
    }
    return STATUS_OK;
}

static int32_t load_value(const source_parts_t *parts, const cell_t *cell, uint64_t k)
{
    if (parts->read == hf_read_awq)
        return (int32_t)hf_unpack(parts->weight->data, k * (cell->outputs / 8) + cell->row / 8,
                                  awq_nibble_of_column[cell->row % 8], 4);
    uint32_t per_word = 32 / parts->bits;
    return (int32_t)hf_unpack(parts->weight->data, k / per_word * cell->outputs + cell->row, k,
                              parts->bits);
}

static uint64_t group_of(const source_parts_t *parts, uint64_t k)
{
    if (parts->group_of == NULL)
        return k / parts->group;
    int32_t group; /* in range: checked when the tensor was listed */
    memcpy(&group, parts->group_of->data + k * sizeof group, sizeof group);
    return (uint64_t)group;
}

/* Values of `n_words` words that lie `stride` words apart, less `minus`. */
static void unpack_words(const uint8_t *words, uint64_t stride, uint64_t n_words, uint32_t bits,
                         int32_t minus, int8_t *out)
{
    uint32_t mask = (1u << bits) - 1;
    for (uint64_t w = 0; w < n_words; w++) {
        uint32_t packed;
        memcpy(&packed, words + w * stride * sizeof packed, sizeof packed);
        for (uint32_t shift = 0; shift < 32; shift += bits)
            *out++ = (int8_t)((int32_t)(packed >> shift & mask) - minus);
    }
}

/* The values of one block of one output. */
static void fill_block(const source_tensor_t *tensor, const cell_t *cell, uint64_t k_first,
                       qtype_i8s_t *block)
{
    const source_parts_t *parts = tensor->parts;
    uint64_t n = tensor->columns - k_first < I8S_VALUES ? tensor->columns - k_first : I8S_VALUES;
    block->d = cell->scale;
    if (parts->read == hf_read_gptq) { /* inputs are whole words, and so is a short block */
        uint32_t per_word = 32 / parts->bits;
        unpack_words(parts->weight->data + (k_first / per_word * cell->outputs + cell->row) * 4,
                     cell->outputs, n / per_word, parts->bits, cell->zero, block->q);
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        block->q[i] = (int8_t)(load_value(parts, cell, k_first + i) - cell->zero);
}

/* Some rows of one block of 32 inputs at a time, so that the words of these inputs and the lines
 * that are written are touched while they are in the cache. */
static status_t read_turned_i8s(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                                uint8_t *out)
{
    uint64_t n_blocks = tensor->row_bytes / sizeof(qtype_i8s_t);
    for (uint64_t tile = 0; tile < n_rows; tile += TILE_ROWS) {
        uint64_t end = n_rows - tile < TILE_ROWS ? n_rows : tile + TILE_ROWS;
        for (uint64_t b = 0; b < n_blocks; b++) {
            uint64_t group = group_of(tensor->parts, b * I8S_VALUES);
            for (uint64_t r = tile; r < end; r++) {
                cell_t cell = {.row = row_first + r, .outputs = tensor->rows};
                qtype_i8s_t block = {0};
                TRY(load_cell(tensor, group, &cell));
                fill_block(tensor, &cell, b * I8S_VALUES, &block);
                memcpy(out + r * tensor->row_bytes + b * sizeof block, &block, sizeof block);
            }
        }
    }
    return STATUS_OK;
}

/* The first n nibbles of a block of one output, as they are stored; what is behind them is 0 where
 * a nibble can say so. */
static void fill_nibbles(const source_tensor_t *tensor, const cell_t *cell, uint64_t k_first,
                         uint64_t n, qtype_z4_t *block)
{
    const source_parts_t *parts = tensor->parts;
    uint32_t zero = block->zero < 15 ? block->zero : 15;
    memset(block->q, (int)(zero | zero << 4), sizeof block->q);
    if (parts->read == hf_read_gptq) { /* a word has 8 inputs in order */
        const uint8_t *words = parts->weight->data + (k_first / 8 * cell->outputs + cell->row) * 4;
        for (uint64_t w = 0; w < n / 8; w++)
            memcpy(block->q + 4 * w, words + w * cell->outputs * 4, 4);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t shift = i % 2 * 4, value = (uint32_t)load_value(parts, cell, k_first + i);
        block->q[i / 2] = (uint8_t)((block->q[i / 2] & (0xf0u >> shift)) | value << shift);
    }
}

static status_t read_turned_z4(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                               uint8_t *out)
{
    const qtype_info_t *info = qtype_info((uint32_t)tensor->type);
    uint64_t values = info->block_values, bytes = info->block_bytes;
    for (uint64_t tile = 0; tile < n_rows; tile += TILE_ROWS) {
        uint64_t end = n_rows - tile < TILE_ROWS ? n_rows : tile + TILE_ROWS;
        for (uint64_t k = 0; k < tensor->columns; k += values) {
            uint64_t group = group_of(tensor->parts, k);
            uint64_t n = tensor->columns - k < values ? tensor->columns - k : values;
            for (uint64_t r = tile; r < end; r++) {
                cell_t cell = {.row = row_first + r, .outputs = tensor->rows};
                qtype_z4_t block;
                TRY(load_cell(tensor, group, &cell));
                memcpy(&block.d, tensor->parts->scale->data + 2 * (group * cell.outputs + cell.row),
                       sizeof block.d);
                block.zero = (uint8_t)cell.zero;
                fill_nibbles(tensor, &cell, k, n, &block);
                memcpy(out + r * tensor->row_bytes + k / values * bytes, &block, bytes);
            }
        }
    }
    return STATUS_OK;
}

/* With act-order neighbours belong to different groups: F32. */
static status_t read_turned_f32(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                                uint8_t *out)
{
    const source_parts_t *parts = tensor->parts;
    for (uint64_t r = 0; r < n_rows; r++) {
        cell_t cell = {.row = row_first + r, .outputs = tensor->rows, .group = UINT64_MAX};
        for (uint64_t k = 0; k < tensor->columns; k++) {
            uint64_t group = group_of(parts, k);
            if (group != cell.group)
                TRY(load_cell(tensor, group, &cell));
            float value = (float)(load_value(parts, &cell, k) - cell.zero) * cell.scale;
            memcpy(out + r * tensor->row_bytes + k * sizeof value, &value, sizeof value);
        }
    }
    return STATUS_OK;
}

static status_t read_turned(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                            uint8_t *out)
{
    if (qtype_is_z4((uint32_t)tensor->type))
        return read_turned_z4(tensor, row_first, n_rows, out);
    switch (tensor->type) {
    case QTYPE_I8S: return read_turned_i8s(tensor, row_first, n_rows, out);
    default: return read_turned_f32(tensor, row_first, n_rows, out);
    }
}

status_t hf_read_awq(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                     uint8_t *out)
{
    return read_turned(tensor, row_first, n_rows, out);
}

/* The same walk; load_value and load_cell ask which of the two layouts it is. */
status_t hf_read_gptq(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                      uint8_t *out)
{
    return read_turned(tensor, row_first, n_rows, out);
}

/* --- rows as they are stored --- */

/* Nibbles stay what they are: 8 more than their values. */
static status_t read_signed_s4(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                               uint8_t *out)
{
    const source_parts_t *parts = tensor->parts;
    const qtype_info_t *info = qtype_info((uint32_t)tensor->type);
    uint64_t per_row = (tensor->columns + parts->group - 1) / parts->group; /* scales */
    uint64_t row_bytes = (tensor->columns + 7) / 8 * 4;
    for (uint64_t r = row_first; r < row_first + n_rows; r++)
        for (uint64_t k = 0; k < tensor->columns; k += info->block_values) {
            qtype_z4_t block = {.zero = 8};
            uint64_t i = r / parts->block_rows * per_row + k / parts->group;
            uint64_t n = tensor->columns - k;
            float finite;
            TRY(read_scale(tensor, r, i, &finite));
            memcpy(&block.d, parts->scale->data + 2 * i, sizeof block.d);
            n = n < info->block_values ? n : info->block_values;
            memset(block.q, 0x88, sizeof block.q);
            memcpy(block.q, parts->weight->data + r * row_bytes + k / 2, (size_t)(n / 2));
            if (n % 2 != 0) {
                uint8_t last = parts->weight->data[r * row_bytes + (k + n) / 2];
                block.q[n / 2] = (uint8_t)((last & 15) | 0x80);
            }
            memcpy(out, &block, info->block_bytes);
            out += info->block_bytes;
        }
    return STATUS_OK;
}

status_t hf_read_signed(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                        uint8_t *out)
{
    const source_parts_t *parts = tensor->parts;
    uint64_t per_row = (tensor->columns + parts->group - 1) / parts->group; /* scales */
    uint32_t per_word = 32 / parts->bits;
    uint64_t words = (tensor->columns + per_word - 1) / per_word;
    int32_t half = 1 << (parts->bits - 1);
    bool packed = parts->weight->dtype != SAFETENSORS_I8;
    if (qtype_is_z4((uint32_t)tensor->type))
        return read_signed_s4(tensor, row_first, n_rows, out);
    for (uint64_t r = row_first; r < row_first + n_rows; r++)
        for (uint64_t k = 0; k < tensor->columns; k += I8S_VALUES, out += sizeof(qtype_i8s_t)) {
            qtype_i8s_t block = {0};
            uint64_t n = tensor->columns - k < I8S_VALUES ? tensor->columns - k : I8S_VALUES;
            TRY(read_scale(tensor, r, r / parts->block_rows * per_row + k / parts->group,
                           &block.d));
            if (!packed)
                memcpy(block.q, parts->weight->data + r * tensor->columns + k, (size_t)n);
            else /* the last word of a row may reach past it, inside the block */
                unpack_words(parts->weight->data + (r * words + k / per_word) * 4, 1,
                             (n + per_word - 1) / per_word, parts->bits, half, block.q);
            memset(block.q + n, 0, (size_t)(I8S_VALUES - n));
            memcpy(out, &block, sizeof block);
        }
    return STATUS_OK;
}

status_t hf_read_fp8(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                     uint8_t *out)
{
    const source_parts_t *parts = tensor->parts;
    uint64_t per_row = (tensor->columns + parts->group - 1) / parts->group;
    for (uint64_t r = row_first; r < row_first + n_rows; r++)
        for (uint64_t k = 0; k < tensor->columns; k += QTYPE_F8S_VALUES) {
            qtype_f8s_t block = {0};
            uint64_t n = tensor->columns - k;
            TRY(read_scale(tensor, r, r / parts->block_rows * per_row + k / parts->group,
                           &block.d));
            memcpy(block.q, parts->weight->data + r * tensor->columns + k,
                   (size_t)(n < QTYPE_F8S_VALUES ? n : QTYPE_F8S_VALUES));
            memcpy(out, &block, sizeof block);
            out += sizeof block;
        }
    return STATUS_OK;
}

/* Stored: byte i of a block has values 2i (low) and 2i + 1. Ours: values i and i + 16. */
status_t hf_read_fp4(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                     uint8_t *out)
{
    const source_parts_t *parts = tensor->parts;
    uint64_t per_row = tensor->columns / QTYPE_BLOCK_VALUES;
    for (uint64_t b = row_first * per_row; b < (row_first + n_rows) * per_row; b++, out += 17) {
        const uint8_t *stored = parts->weight->data + b * 16;
        out[0] = parts->scale->data[b];
        if (out[0] == 255)
            return bad_scale(tensor, b / per_row);
        for (int i = 0; i < 16; i++) {
            int shift = i % 2 * 4;
            out[1 + i] = (uint8_t)((stored[i / 2] >> shift & 15) |
                                   (stored[8 + i / 2] >> shift & 15) << 4);
        }
    }
    return STATUS_OK;
}

/* Sizes that the compiler knows become single moves. */
static void scatter(const uint8_t *from, uint64_t n, size_t size, uint64_t stride, uint8_t *out)
{
    if (size == 2)
        for (uint64_t r = 0; r < n; r++)
            memcpy(out + r * stride, from + r * 2, 2);
    else
        for (uint64_t r = 0; r < n; r++)
            memcpy(out + r * stride, from + r * 4, 4);
}

status_t hf_read_turned(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                        uint8_t *out)
{
    uint64_t outputs = tensor->dims[1], inputs = tensor->columns;
    size_t size = (size_t)(tensor->row_bytes / inputs);
    while (n_rows > 0) { /* some rows of one expert at a time */
        uint64_t expert = row_first / outputs, first = row_first % outputs;
        uint64_t n = outputs - first < TURN_ROWS ? outputs - first : TURN_ROWS;
        n = n < n_rows ? n : n_rows;
        const uint8_t *from =
            tensor->parts->weight->data + (expert * inputs * outputs + first) * size;
        for (uint64_t i = 0; i < inputs; i++, from += outputs * size)
            scatter(from, n, size, tensor->row_bytes, out + i * size);
        out += n * tensor->row_bytes;
        row_first += n;
        n_rows -= n;
    }
    return STATUS_OK;
}
