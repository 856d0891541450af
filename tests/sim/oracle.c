/* What must come out: ids as a hash, text by plain concatenation and strstr, written without the
 * code under test. The vocabulary has letters, pieces of "STOP!", and an emoji cut into four
 * tokens, so that stop strings and characters straddle tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { PIECES = 64 };

static const char *const pieces[PIECES] = {
    [0] = "a", [1] = "b", [2] = "c", [3] = "d", [4] = "e", [5] = "f", [6] = "g", [7] = "h",
    [8] = "i", [9] = "j", [10] = "k", [11] = "l", [12] = "m", [13] = "n", [14] = "o", [15] = "p",
    [16] = "q", [17] = "r", [18] = "s", [19] = "t", [20] = "u", [21] = "v", [22] = "w",
    [23] = "x", [24] = "y", [25] = "z", [26] = " ", [27] = "\xF0", [28] = "\x9F", [29] = "\x98",
    [30] = "\x80", [31] = "S", [32] = "ST", [33] = "OP", [34] = "P!", [35] = "O", [36] = "TOP!",
    [37] = "!", [38] = "xS", [39] = "TO", [40] = "aa", [41] = "bb", [42] = "cc", [43] = "dd",
    [44] = "ee", [45] = "ff", [46] = "gg", [47] = "hh", [48] = "ii", [49] = "jj", [50] = "kk",
    [51] = "ll", [52] = "mm", [53] = "nn", [54] = "oo", [55] = "pp", [56] = "qq", [57] = "rr",
    [58] = "ss", [59] = "tt", [60] = "uu", [61] = "vv", [62] = "zz", [63] = "<end>",
};

uint64_t sim_mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9E3779B97F4A7C15u + b + 0x632BE59BD9B4E019u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* A token in GPT-2's byte alphabet: bytes that print are themselves, the others 256, 257, …. */
static size_t to_alphabet(const char *piece, size_t size, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned byte = (unsigned char)piece[i], code = byte, shift = 0;
        for (unsigned b = 0; b <= byte; b++) {
            bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
            if (!prints && b == byte)
                code = 256 + shift;
            shift += !prints;
        }
        if (code < 128) {
            out[n++] = (char)code;
        } else {
            out[n++] = (char)(0xC0 | (code >> 6));
            out[n++] = (char)(0x80 | (code & 63));
        }
    }
    return n;
}

/* Token PIECES + b is byte b, where no piece is that byte alone; else a filler never produced. */
static size_t byte_token(unsigned byte, char *out)
{
    char alone = (char)byte;
    for (size_t i = 0; i < PIECES; i++)
        if (pieces[i][0] == alone && pieces[i][1] == 0)
            return (size_t)sprintf(out, "filler%u", byte);
    return to_alphabet(&alone, 1, out);
}

const tokenizer_t *oracle_tokenizer(void)
{
    static tokenizer_t *tokenizer;
    if (tokenizer)
        return tokenizer;
    static char storage[SIM_VOCAB][32];
    tokenizer_text_t tokens[SIM_VOCAB];
    uint8_t kinds[SIM_VOCAB];
    for (uint32_t i = 0; i < SIM_VOCAB; i++) {
        size_t n = i >= PIECES       ? byte_token(i - PIECES, storage[i])
                   : i == SIM_ID_EOS ? (size_t)sprintf(storage[i], "%s", pieces[i])
                                     : to_alphabet(pieces[i], strlen(pieces[i]), storage[i]);
        tokens[i] = (tokenizer_text_t){storage[i], n};
        kinds[i] = i == SIM_ID_EOS ? TOKEN_CONTROL : TOKEN_NORMAL;
    }
    tokenizer_source_t source = {
        .tokens = tokens,
        .kinds = kinds,
        .n_tokens = SIM_VOCAB,
        .pre = "gpt-2",
        .name = "simulated",
        .bos_id = TOKENIZER_NO_ID,
        .eos_id = SIM_ID_EOS,
        .pad_id = TOKENIZER_NO_ID,
        .unknown_id = TOKENIZER_NO_ID,
    };
    if (tokenizer_create(&source, &tokenizer) != STATUS_OK) {
        fprintf(stderr, "the simulated tokenizer: %s\n", status_text());
        abort();
    }
    return tokenizer;
}

uint32_t oracle_id(uint64_t seed, uint32_t choice, uint32_t position)
{
    uint64_t stream = sim_mix(seed, choice);
    /* Some groups of eight positions begin with the four tokens of the emoji. */
    if (position % 8 < 4 && sim_mix(stream, 1000 + position / 8) % 3 == 0)
        return SIM_ID_EMOJI + position % 8;
    uint64_t h = sim_mix(stream, position + 1);
    if (h % 61 == 0)
        return SIM_ID_EOS;
    if (h % 5 < 2)
        return 31 + (uint32_t)((h >> 8) % 9); /* pieces of the stop string */
    uint32_t id = (uint32_t)((h >> 8) % 27);
    return id;
}

void oracle_text(uint64_t seed, uint32_t choice, uint32_t max_tokens, const char *stop,
                 oracle_text_t *out)
{
    memset(out, 0, sizeof *out);
    while (out->n < max_tokens) {
        uint32_t id = oracle_id(seed, choice, out->n);
        out->ids[out->n++] = id;
        if (id == SIM_ID_EOS)
            break;
        strcat(out->text, pieces[id]);
        char *at = *stop ? strstr(out->text, stop) : NULL;
        if (at) {
            *at = 0;
            return;
        }
    }
    /* A text that ends inside the emoji shows one replacement character for what is there of it. */
    size_t n = strlen(out->text);
    char *lead = strrchr(out->text, '\xF0');
    if (lead && (size_t)(out->text + n - lead) < 4)
        strcpy(lead, "\xEF\xBF\xBD");
}

void request_draw(uint64_t seed, bool poison, request_t *out)
{
    memset(out, 0, sizeof *out);
    out->seed = seed;
    out->n_prompt = 3 + sim_mix(seed, 71) % 40;
    for (size_t i = 0; i < out->n_prompt; i++)
        out->prompt[i] = (uint32_t)(sim_mix(seed, 500 + i) % 27);
    out->poison = poison;
    if (poison)
        out->prompt[out->n_prompt / 2] = SIM_ID_POISON;
    out->max_tokens = 4 + (uint32_t)(sim_mix(seed, 72) % (SIM_TOKENS_MAX - 4));
    out->choices = sim_mix(seed, 73) % 4 == 0 ? 2 : 1;
    if (sim_mix(seed, 74) % 2)
        strcpy(out->stop, sim_mix(seed, 75) % 3 ? "STOP!" : "a\xF0\x9F\x98\x80");
}

void request_fill(const request_t *request, Shoal__V1__Sampling *s, char **stop_out,
                  core_request_t *out)
{
    shoal__v1__sampling__init(s);
    s->has_temperature_case = SHOAL__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    s->has_top_k_case = SHOAL__V1__SAMPLING__HAS_TOP_K_TOP_K;
    s->has_top_p_case = SHOAL__V1__SAMPLING__HAS_TOP_P_TOP_P;
    s->top_p = 1;
    s->has_min_p_case = SHOAL__V1__SAMPLING__HAS_MIN_P_MIN_P;
    s->has_repetition_penalty_case = SHOAL__V1__SAMPLING__HAS_REPETITION_PENALTY_REPETITION_PENALTY;
    s->repetition_penalty = 1;
    s->has_seed_case = SHOAL__V1__SAMPLING__HAS_SEED_SEED;
    s->seed = request->seed;
    s->has_max_tokens_case = SHOAL__V1__SAMPLING__HAS_MAX_TOKENS_MAX_TOKENS;
    s->max_tokens = request->max_tokens;
    s->has_choices_case = SHOAL__V1__SAMPLING__HAS_CHOICES_CHOICES;
    s->choices = request->choices;
    if (*request->stop) {
        *stop_out = (char *)(uintptr_t)request->stop;
        s->stop = stop_out;
        s->n_stop = 1;
    }
    *out = (core_request_t){
        .deployment = "toy",
        .prompt = request->prompt,
        .n_prompt = request->n_prompt,
        .sampling = s,
        .tenant = "t",
        .adapter = "",
    };
}
