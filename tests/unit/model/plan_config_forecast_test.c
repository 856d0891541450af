/* Plans of published models on hardware that people have, with the numbers worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/footprint.h"
#include "common/model/forecast.h"
#include "common/model/model_outline.h"
#include "tests/unit/model/plan_config_models.h"

typedef struct {
    model_t *model;
    plan_sizes_t sizes;
    hosts_file_t hosts;
    forecast_question_t question;
    forecast_t forecast;
} case_t;

/* `quantize` NULL: none. */
static case_t *case_new(const char *config, const char *hosts, const char *quantize,
                        uint32_t context)
{
    case_t *c = MEM_NEW(case_t);
    if (model_outline_open_bytes("config.json", config, strlen(config), &c->model) != STATUS_OK ||
        hosts_file_parse("hosts", hosts, strlen(hosts), &c->hosts) != STATUS_OK)
        fail_msg("%s", status_text());
    if (quantize != NULL)
        assert_int_equal(model_outline_quantize(c->model, quantize), STATUS_OK);
    plan_sizes(c->model, &c->sizes);
    c->question = (forecast_question_t){
        .sizes = &c->sizes,
        .weights = quantize != NULL ? model_tensor(c->model, MODEL_FFN_DOWN, 0)->type : QTYPE_BF16,
        .context = context, .prompt = 1024, .batch_max = 64};
    return c;
}

static void case_free(case_t *take_case)
{
    model_close(take_case->model);
    hosts_file_release(&take_case->hosts);
    free(take_case);
}

static void make(case_t *c)
{
    if (forecast_make(&c->question, &c->hosts, &c->forecast) != STATUS_OK)
        fail_msg("%s", status_text());
}

static void assert_near(double value, double wanted, double distance)
{
    if (!(fabs(value - wanted) <= distance))
        fail_msg("%.9g is not within %g of %.9g", value, distance, wanted);
}

/* --- parameters --- */

static void check_parameters(const char *config, uint64_t all, uint64_t active, uint64_t kv)
{
    model_t *model;
    footprint_t footprint;
    assert_int_equal(model_outline_open_bytes("c", config, strlen(config), &model), STATUS_OK);
    footprint_of_model(model, &footprint);
    assert_int_equal(footprint.parameters, all);
    assert_int_equal(footprint.active_parameters, active);
    assert_int_equal(footprint.kv_bytes_per_token, kv);
    model_close(model);
}

/* DeepSeek-V3, published as 671B with 37B a token.
 * Attention of a layer: q_a 1536*7168 = 11,010,048; q_b 128*192*1536 = 37,748,736; kv_a 576*7168 =
 * 4,128,768; kv_b 128*256*512 = 16,777,216; output 7168*128*128 = 117,440,512; norms 1536 + 512 +
 * 2*7168 = 16,384; together 187,121,664; 61 of them 11,414,421,504.
 * Three dense layers: 3 * 3*18432*7168 = 1,189,085,184.
 * 58 layers of experts: 3*2048*7168 = 44,040,192 an expert, 257 with the shared one, router
 * 256*7168 + 256: 11,320,164,608 a layer, 656,569,547,264 in all.
 * Embedding and head 2*129280*7168, norm 7168: 1,853,365,248. Sum 671,026,419,200.
 * A token uses 8 of 256 experts and no embedding: less 58*248*44,040,192 = 633,474,121,728 and
 * 926,679,040: 36,625,618,432. KV: 61 * (512 + 64) * 2 bytes.
 *
 * DeepSeek LLM 67B: a layer 2*8192^2 + 2*1024*8192 + 3*22016*8192 + 2*8192 = 692,076,544, 95 of
 * them 65,747,271,680; 2*102400*8192 + 8192 more: 67,425,001,472; without the embedding
 * 66,586,140,672. KV: 95 * 2*8*128 * 2.
 *
 * R1-Distill-Qwen-7B (7.62B): a layer 2*3584^2 + 2*512*3584 + 3584 + 2*512 + 3*18944*3584 + 2*3584
 * = 233,057,792; 28 of them 6,525,618,176; 2*152064*3584 + 3584: 7,615,616,512. */
static void test_parameters_are_those_that_were_published(void **state)
{
    (void)state;
    check_parameters(PLAN_CONFIG_DEEPSEEK_V3, 671026419200, 36625618432, 70272);
    check_parameters(PLAN_CONFIG_DEEPSEEK_67B, 67425001472, 66586140672, 389120);
    check_parameters(PLAN_CONFIG_QWEN_7B, 7615616512, 7615616512 - 152064 * 3584, 57344);
}

/* --- DeepSeek-V3 on two hosts of eight --- */

static const char two_hosts_of_80_gib[] =
    "{\"hosts\": [{\"count\": 2, \"link_gb_s\": 50, \"devices\": [{\"name\": \"H100-80\", "
    "\"memory_gib\": 80, \"reserve_gib\": 0, \"count\": 8}]}]}";

/* FP8 rows are blocks of 128 values in 132 bytes; the planner adds an eighth to each part.
 * A layer on slice 0 of tp 8:
 *   whole:  in BF16 the norms 2*(1536 + 512 + 2*7168) = 32,768 and the router 2*256*7168 =
 *           3,670,016; correction 4*256 = 1,024; together 3,703,808, with an eighth 4,166,784
 *   shared: q_a 1536*56*132 = 11,354,112 and kv_a 576*56*132 = 4,257,792, with an eighth
 *           17,563,392, by columns over eight slices: 2,195,424
 *   heads:  q_b 24576*12*132 = 38,928,384 and kv_b 32768*4*132 = 17,301,504: 56,229,888;
 *           with an eighth 63,258,624; 16 of 128 heads: 7,907,328
 *   output: 7168*128*132 = 121,110,528; with an eighth 136,249,344; of that an eighth: 17,031,168
 *   so attention takes 31,300,704.
 *   dense:  2*18432*56*132 + 7168*144*132 = 408,748,032; 459,841,536; 2304 of 18432: 57,480,192
 *   expert: 2*2048*56*132 + 7168*16*132 = 45,416,448; 128 of 256 experts and a quarter of each:
 *           5,813,305,344 * 9/8 / 4 = 1,634,992,128
 *   shared: 45,416,448 * 9/8 / 4 = 12,773,376, on every second slice (four leaves for eight slices)
 * Stage 0 has 31 layers: 31*31,300,704 + 3*57,480,192 + 28*(1,634,992,128 + 12,773,376) =
 * 47,280,196,512, and the embedding 129280*7168*2 = 1,853,358,080: 49,133,554,592 bytes.
 * Work space: 512 rows of 5*7168 + 2*192*(16 + 1) + 3*2304 + 16*(2*512 + 64) + 1536 + 512 + 64 +
 * 2*7168*9 + 256 + 3*512*8 + 3*512 = 211,904 F32 values: 433,979,392; on the last stage logits of
 * 64 rows of 16384 + 129280 values, 37,289,984 more; 64 MiB of process.
 * Stage 1 has 30 layers with experts: 30*31,300,704 + 30*1,647,765,504 = 50,371,986,240; the head's
 * 1,853,372,416 * 9/8 * 16384/129280 = 264,243,196: 50,636,229,436 bytes.
 * KV: 1,152 bytes a layer and token. 85,899,345,920 - 50,636,229,436 - 538,378,240 = 34,724,738,244
 * over 30*1152 = 1,004,766 tokens there, 15,699 whole tiles: 1,004,736; more on stage 0. */
static void test_deepseek_v3_fits_two_hosts_of_eight_with_80_gib_each(void **state)
{
    (void)state;
    case_t *c = case_new(PLAN_CONFIG_DEEPSEEK_V3, two_hosts_of_80_gib, NULL, 8192);
    c->question.tp = 8;
    c->question.stages = 2;
    c->question.weights = QTYPE_F8S;
    make(c);
    const forecast_t *f = &c->forecast;
    assert_true(f->fits);
    assert_int_equal(f->replicas, 1);
    assert_int_equal(f->layers[0].count, 31);
    assert_int_equal(f->layers[1].count, 30);
    assert_int_equal(f->needs[0].weights, 49133554592);
    assert_int_equal(f->needs[1].weights, 49133554592 - 28 * 12773376);
    assert_int_equal(f->needs[8].weights, 50636229436);
    assert_int_equal(f->needs[0].scratch + f->needs[0].process, 433979392 + 67108864);
    assert_int_equal(f->needs[8].scratch + f->needs[8].process, 433979392 + 37289984 + 67108864);
    assert_int_equal(f->needs[0].kv_per_token, 31 * 1152);
    assert_int_equal(f->needs[8].kv_per_token, 30 * 1152);
    assert_int_equal(f->kv_tokens, 1004736);
    assert_int_equal(f->sequences, 122); /* of 8,192 */
    for (uint32_t rank = 0; rank < 16; rank++) /* a stage a host */
        assert_int_equal(c->hosts.host_of[f->devices[rank]], rank / 8);
    case_free(c);
}

/* The shape that is chosen uses all devices, and a stage does not reach across hosts. One host
 * alone is too small: 671 GB of weights, 780 GB with the planner's eighth, beside 640 GiB = 687
 * GB. */
static void test_deepseek_v3_is_cut_between_the_hosts_and_does_not_fit_one(void **state)
{
    (void)state;
    case_t *c = case_new(PLAN_CONFIG_DEEPSEEK_V3, two_hosts_of_80_gib, NULL, 8192);
    c->question.weights = QTYPE_F8S;
    make(c);
    const forecast_t *f = &c->forecast;
    assert_true(f->fits);
    assert_int_equal(f->shape.tp * f->shape.stages, 16);
    assert_true(f->shape.stages >= 2);
    for (uint32_t stage = 0; stage < f->shape.stages; stage++)
        for (uint32_t s = 1; s < f->shape.tp; s++)
            assert_int_equal(c->hosts.host_of[f->devices[stage * f->shape.tp + s]],
                             c->hosts.host_of[f->devices[stage * f->shape.tp]]);
    /* Three stages of five: a third one finds five devices only on two hosts, each of which could
     * have held it. */
    c->question.tp = 5;
    c->question.stages = 3;
    assert_int_equal(forecast_make(&c->question, &c->hosts, &c->forecast), STATUS_REFUSED);
    assert_non_null(strstr(status_text(), "tp 5 x 3 stages needs 15 devices"));
    c->question.tp = 17;
    assert_int_equal(forecast_make(&c->question, &c->hosts, &c->forecast), STATUS_INVALID);
    c->question.tp = 16;
    c->question.stages = 40;
    assert_int_equal(forecast_make(&c->question, &c->hosts, &c->forecast), STATUS_INVALID);
    case_free(c);

    static const char one[] =
        "{\"hosts\": [{\"devices\": [{\"name\": \"H100-80\", \"count\": 8}]}]}";
    forecast_advice_t advice;
    c = case_new(PLAN_CONFIG_DEEPSEEK_V3, one, NULL, 8192);
    make(c);
    assert_false(c->forecast.fits);
    assert_non_null(strstr(c->forecast.reason, "MiB for weights"));
    forecast_advise(&c->question, &c->hosts, &c->forecast, &advice);
    assert_int_equal(advice.devices, 12);
    assert_int_equal(advice.context, 0); /* the weights alone are too much */
    case_free(c);
}

/* --- DeepSeek LLM 67B on eight A100 --- */

/* tp 8: 8 heads and 1 key/value head, 2752 of 22016 FFN values, 13312 of 102400 tokens on slice 0.
 * A layer in BF16: (2*8192^2 + 2*1024*8192 + 3*22016*8192) * 2 = 1,384,120,320, an eighth of which
 * is 173,015,040, and norms 32,768; with the planner's eighth 194,641,920 + 36,864 = 194,678,784.
 * Head (1,677,721,600 + 16,384) * 9/8 * 0.13 = 245,369,180.2, rounded up; embedding 1,677,721,600.
 *
 * One sequence at 4,096 positions. Memory: 95*173,047,808 = 16,439,541,760; head 1,677,737,984*0.13
 * = 218,105,937.92; one embedded row 16,384; KV 95 * 4096 * 2*128*2 = 199,229,440:
 * 16,856,893,521.92 bytes at 2039 GB/s: 8.267236 ms. Compute: as many flops for weights as bytes of
 * them (two flops and two bytes a value), and scores 95 * 4*8*128*4096 = 1,593,835,520:
 * 18,251,483,217.92 at 312 TFLOPS: 0.058498 ms. Links: two exchanges a layer of 7 parts of 8192*4
 * bytes at 300 GB/s and 5 us: 190 * (229,376/300e9 + 5e-6) = 1.095271 ms; logits (102400 - 13312)*4
 * bytes: 0.006188 ms. Together 8.267236 + 1.101459 = 9.368695 ms: 106.738 tokens/s. */
static void test_67b_on_eight_a100(void **state)
{
    (void)state;
    static const char hosts[] =
        "{\"hosts\": [{\"devices\": [{\"name\": \"A100-80\", \"count\": 8}]}]}";
    case_t *c = case_new(PLAN_CONFIG_DEEPSEEK_67B, hosts, NULL, 4096);
    c->question.tp = 8;
    c->question.stages = 1;
    make(c);
    const forecast_t *f = &c->forecast;
    assert_true(f->fits);
    assert_int_equal(f->needs[0].weights, 95ull * 194678784 + 245369181 + 1677721600);
    assert_int_equal(f->needs[0].kv_per_token, 95 * 2 * 128 * 2);
    assert_near(1e3 * f->one.memory_s, 8.267236, 1e-6);
    assert_near(1e3 * f->one.compute_s, 0.058498, 1e-6);
    assert_near(1e3 * f->one.link_s, 1.101459, 1e-6);
    assert_near(f->one_tokens_s, 106.738, 1e-3);
    /* 64 sequences read the same weights, and 64 rows of the embedding and of the cache. */
    double bytes = 95 * 173047808.0 + 218105937.92 + 64 * 16384.0 + 64 * 199229440.0;
    assert_near(f->many.memory_s, bytes / 2039e9, 1e-9);
    /* Four of them are enough for a replica; two replicas of four make more tokens than one of
     * eight, because the exchanges are shorter. One sequence alone is fastest on all. */
    double on_eight = f->many_tokens_s;
    c->question.tp = c->question.stages = 0;
    make(c);
    assert_int_equal(f->shape.tp * f->shape.stages, 4);
    assert_int_equal(f->replicas, 2);
    assert_true(2 * f->many_tokens_s > on_eight);
    c->question.latency = true;
    make(c);
    assert_int_equal(f->shape.tp, 8);
    case_free(c);
}

/* --- what people have --- */

typedef struct {
    const char *name, *config;
    uint64_t kv_bytes; /* of a token */
    struct {
        uint64_t weights, work;
        uint64_t tokens[3]; /* that fit on 12, 24 and 48 GB; 0: it does not fit */
    } as[3]; /* BF16, q8, q4 */
} row_t;

/* Of a dense layer, hidden h, q = heads*128, k = kv heads*128, ffn f, in bytes a value b (2; q8
 * 34/32; q4 20/32): norms 4h, (q h + 2 k h + h q + 3 f h) * b, and in Qwen biases 2 (q + 2k). With
 * an eighth:
 *   7B  (3584, 3584, 512, 18944):  524,380,032 | 278,589,312 | 163,886,976, 28 layers
 *   8B  (4096, 4096, 1024, 14336): 490,752,000 | 260,720,640 | 153,372,672, 32 layers
 *   14B (5120, 5120, 1024, 13824): 619,354,368 | 329,050,368 | 193,575,168, 48 layers
 *   32B (5120, 5120, 1024, 27648): 1,097,111,808 | 582,859,008 | 342,874,368, 64 layers
 * The embedding stays BF16: 2 V h; the head has eight bits in q8 and q4, (2 V h or 34/32 V h, and 2 h)
 * * 9/8; V 152064 (8B: 128256). 7B in BF16: 28*524,380,032 + 1,089,994,752 + 1,226,252,160 = 16,998,887,808.
 * Work space: 512 rows * 4 * (5h + 2*128*(heads + kv heads) + 3f) + 64*4*2V + 64 MiB.
 * Devices: 12288, 24564 and 46068 MiB, less 1 GiB. Tokens: what is left, over KV bytes, in whole
 * tiles of 64; two sequences of 8,192 must fit. 8B in q8 on 12 GB has room for 11,456 tokens; 32B
 * in q4 is too large for 24 GB. */
static const row_t rows[] = {
    {"7B", PLAN_CONFIG_QWEN_7B, 57344,
     {{16998887808, 314834944, {0, 128512, 521728}},
      {9541945728, 314834944, {34048, 258496, 651712}},
      {6330280320, 314834944, {90048, 314560, 707776}}}},
    {"8B", PLAN_CONFIG_LLAMA_8B, 131072,
     {{17936753664, 283770880, {0, 49280, 221312}},
      {10021684224, 283770880, {0, 109632, 281664}},
      {6586549248, 283770880, {37632, 135872, 307904}}}},
    {"14B", PLAN_CONFIG_QWEN_14B, 196608,
     {{33037933824, 307494912, {0, 0, 70592}},
      {18282196224, 307494912, {0, 30976, 145664}},
      {11779386624, 307494912, {0, 64064, 178752}}}},
    {"32B", PLAN_CONFIG_QWEN_32B, 262144,
     {{73524079872, 392429568, {0, 0, 0}},
      {39790755072, 392429568, {0, 0, 26880}},
      {24431738112, 392429568, {0, 0, 85440}}}},
};

static void check_row(const row_t *row, size_t as, size_t on)
{
    static const char *const hosts[] = {
        "{\"hosts\": [{\"devices\": [{\"name\": \"RTX-3060-12\"}]}]}",
        "{\"hosts\": [{\"devices\": [{\"name\": \"RTX-4090-24\"}]}]}",
        "{\"hosts\": [{\"devices\": [{\"name\": \"L40S-48\"}]}]}",
    };
    static const char *const names[] = {NULL, "q8", "q4"};
    case_t *c = case_new(row->config, hosts[on], names[as], 8192);
    make(c);
    const forecast_t *f = &c->forecast;
    uint64_t wanted = row->as[as].tokens[on];
    if (f->needs[0].weights != row->as[as].weights || f->fits != (wanted != 0) ||
        f->needs[0].scratch + f->needs[0].process != row->as[as].work ||
        f->kv_tokens != wanted || f->needs[0].kv_per_token != row->kv_bytes)
        fail_msg("%s, form %zu on device %zu: weights %llu, fits %d, tokens %llu", row->name, as,
                 on, (unsigned long long)f->needs[0].weights, f->fits,
                 (unsigned long long)f->kv_tokens);
    case_free(c);
}

static void test_7b_to_32b_on_12_24_and_48_gb(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t as = 0; as < 3; as++)
            for (size_t on = 0; on < 3; on++)
                check_row(&rows[i], as, on);
}

/* 8B in q8 on 12 GB: room for 11,456 tokens, 179 tiles; two sequences of 89 tiles, 5,696 positions,
 * but not of 90. A device needs 10,021,684,224 + 283,770,880 + 16,384*131,072 + 1 GiB. On two
 * devices at tp 2 each has half of nearly everything. */
static void test_what_would_fit_is_said_with_numbers(void **state)
{
    (void)state;
    static const char hosts[] = "{\"hosts\": [{\"devices\": [{\"name\": \"RTX-3060-12\"}]}]}";
    case_t *c = case_new(PLAN_CONFIG_LLAMA_8B, hosts, "q8", 8192);
    forecast_advice_t advice;
    make(c);
    assert_false(c->forecast.fits);
    forecast_advise(&c->question, &c->hosts, &c->forecast, &advice);
    assert_int_equal(advice.device_bytes,
                     10021684224 + 283770880 + 16384ull * 131072 + (1ull << 30));
    assert_int_equal(advice.context, 5696);
    assert_int_equal(advice.devices, 2);
    c->question.context = 5696;
    make(c);
    assert_true(c->forecast.fits);
    c->question.context = 5697;
    make(c);
    assert_false(c->forecast.fits);
    case_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parameters_are_those_that_were_published),
        cmocka_unit_test(test_deepseek_v3_fits_two_hosts_of_eight_with_80_gib_each),
        cmocka_unit_test(test_deepseek_v3_is_cut_between_the_hosts_and_does_not_fit_one),
        cmocka_unit_test(test_67b_on_eight_a100),
        cmocka_unit_test(test_7b_to_32b_on_12_24_and_48_gb),
        cmocka_unit_test(test_what_would_fit_is_said_with_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
