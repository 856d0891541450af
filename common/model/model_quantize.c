/* Online quantization: the views of a model's matrices that become blocks of small codes as they are
 * read. What is left as it is stored: vectors, embeddings, routers, the indexer, and the up-projections
 * of latents, which are held as one small matrix a head. See model.h. */
#include <string.h>

#include "common/base/memory.h"
#include "common/model/model_internal.h"

typedef struct {
    const char *name;
    qtype_t layers; /* of the matrices of layers */
    qtype_t head;   /* the logits show its error at once, so it keeps eight bits */
} quantization_t;

static const quantization_t quantizations[] = {
    {"q8", QTYPE_Q8_0, QTYPE_Q8_0},
    {"q4", QTYPE_Q4_1, QTYPE_Q8_0},
    {"fp8", QTYPE_F8S, QTYPE_F8S},
};

/* The matrices of layers, but those that choose (routers, the indexer) or mix streams, and the
 * up-projections of latents. */
static bool is_quantized(model_role_t role)
{
    switch (role) {
    case MODEL_ATTN_Q:
    case MODEL_ATTN_K:
    case MODEL_ATTN_V:
    case MODEL_ATTN_OUTPUT:
    case MODEL_ATTN_Q_A:
    case MODEL_ATTN_Q_B:
    case MODEL_ATTN_KV_A:
    case MODEL_FFN_GATE:
    case MODEL_FFN_UP:
    case MODEL_FFN_DOWN:
    case MODEL_SHARED_GATE:
    case MODEL_SHARED_UP:
    case MODEL_SHARED_DOWN:
    case MODEL_EXPERT_GATE:
    case MODEL_EXPERT_UP:
    case MODEL_EXPERT_GATE_UP:
    case MODEL_EXPERT_DOWN: return true;
    default: return false;
    }
}

static const quantization_t *find(const char *name)
{
    for (size_t i = 0; i < sizeof quantizations / sizeof *quantizations; i++)
        if (strcmp(quantizations[i].name, name) == 0)
            return &quantizations[i];
    return NULL;
}

bool model_quantize_type(const char *name, model_role_t role, qtype_t *out)
{
    const quantization_t *wanted = find(name);
    if (wanted == NULL || (role != MODEL_OUTPUT && !is_quantized(role)))
        return false;
    *out = role == MODEL_OUTPUT ? wanted->head : wanted->layers;
    return true;
}

status_t model_check_quantize(const char *name)
{
    if (name[0] == 0 || find(name) != NULL)
        return STATUS_OK;
    return fail(STATUS_INVALID, "quantize: \"%.20s\" is none of q8, q4 and fp8", name);
}

/* NULL when the tensor keeps its type. */
static const source_tensor_t *view_of(model_t *model, const source_tensor_t *stored, qtype_t type)
{
    source_tensor_t *view = &model->views[model->n_views];
    if (!source_tensor_quantized(stored, type, view))
        return NULL;
    CHECK(model->n_views < source_n_tensors(model->source));
    model->n_views++;
    return view;
}

static void quantize_tensor(model_t *model, model_tensor_t *tensor, qtype_t type)
{
    const source_tensor_t *view = tensor->name ? view_of(model, tensor->source, type) : NULL;
    if (view == NULL)
        return;
    tensor->type = view->type;
    tensor->row_bytes = view->row_bytes;
    tensor->bytes = model_held_bytes(tensor);
    tensor->data = NULL;
    tensor->source = view;
}

/* Where every expert has a tensor of its own, expert 0's is the role's. */
static void quantize_role(model_t *model, const char *name, model_role_t role, uint32_t layer)
{
    model_tensor_t *tensor = &model->tensors[(size_t)layer * MODEL_N_ROLES + role];
    const source_tensor_t **each = NULL;
    qtype_t type;
    if (!model_quantize_type(name, role, &type))
        return;
    if (role >= MODEL_EXPERT_GATE && model->experts != NULL)
        each = &model->experts[((size_t)layer * MODEL_N_EXPERT_ROLES +
                                (size_t)(role - MODEL_EXPERT_GATE)) * model->config.experts.n];
    quantize_tensor(model, tensor, type);
    if (each == NULL || each[0] == NULL)
        return;
    each[0] = tensor->source;
    for (uint32_t e = 1; e < model->config.experts.n; e++) {
        const source_tensor_t *view = view_of(model, each[e], type);
        each[e] = view ? view : each[e];
    }
}

status_t model_quantize(model_t *model, const char *name)
{
    TRY(model_check_quantize(name));
    if (name[0] == 0)
        return STATUS_OK;
    /* A tensor has one view at most; of a tied one only the head's part is quantized. */
    model->views = MEM_NEW_ARRAY(source_tensor_t, source_n_tensors(model->source) + 1);
    for (uint32_t layer = 0; layer < model->config.n_layers; layer++)
        for (int role = MODEL_ATTN_NORM; role < MODEL_N_ROLES; role++)
            quantize_role(model, name, (model_role_t)role, layer);
    if (model->n_views == 0)
        return fail(STATUS_UNSUPPORTED, "%s: quantize \"%s\" needs matrices in F32, F16 or BF16; "
                    "these are %s", source_path(model->source), name,
                    qtype_name(model->tensors[MODEL_ATTN_OUTPUT].type));
    quantize_role(model, name, MODEL_OUTPUT, 0);
    return STATUS_OK;
}

uint64_t model_weight_bytes(const model_t *model)
{
    const model_tensor_t *embedding = model_tensor(model, MODEL_TOKEN_EMBD, 0);
    uint64_t sum = 0;
    for (uint32_t layer = 0; layer < model->config.n_layers; layer++)
        for (int role = 0; role < MODEL_N_ROLES; role++) {
            const model_tensor_t *tensor = model_tensor(model, (model_role_t)role, layer);
            bool again = layer > 0 && role < MODEL_ATTN_NORM; /* those that exist once */
            bool tied = role == MODEL_OUTPUT && tensor && tensor->source == embedding->source;
            if (tensor && !again && !tied)
                sum += tensor->bytes * (role < MODEL_EXPERT_GATE ? 1 : model->config.experts.n);
        }
    return sum;
}
