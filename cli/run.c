/* `shoal run`: one prompt, answered as it is produced. When the coordinator goes away the command
 * resumes at another one from the number of tokens that it has, so the text goes on where it was. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/output.h"
#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "shoal/v1/inference.pb-c.h"

enum { RESUMES_MAX = 20 };

typedef struct {
    const char *model, *system, *format;
    int64_t max_tokens, top_k, seed;
    double temperature, top_p, min_p;
    bool raw, json;
    bool max_tokens_given, top_k_given, seed_given, temperature_given, top_p_given, min_p_given;
} run_options_t;

typedef struct {
    char *id, *text_identity;
    uint64_t seed;
    uint32_t n;                /* tokens so far: where a resume goes on */
    buffer_t text;
    uint64_t began_ms, first_ms;
    uint32_t prompt_tokens;
    bool ended, json;
    const char *finish;
    char error[STATUS_TEXT_MAX];
} answer_t;

static const char *finish_name(Shoal__V1__FinishReason reason)
{
    switch (reason) {
    case SHOAL__V1__FINISH_REASON__FINISH_REASON_STOP: return "stop";
    case SHOAL__V1__FINISH_REASON__FINISH_REASON_LENGTH: return "length";
    case SHOAL__V1__FINISH_REASON__FINISH_REASON_CANCELLED: return "cancelled";
    case SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR: return "error";
    default: return "unknown";
    }
}

static void take_started(client_t *client, answer_t *answer, const Shoal__V1__Started *started)
{
    if (answer->id != NULL)
        return;
    answer->id = mem_strdup(started->id);
    answer->text_identity = mem_strdup(started->text_identity);
    answer->seed = started->seed;
    answer->prompt_tokens = started->prompt_tokens;
    for (size_t i = 0; i < started->n_endpoints; i++)
        client_add_endpoint(client, started->endpoints[i]);
}

static void take_output(answer_t *answer, const Shoal__V1__Output *output)
{
    if (answer->first_ms == 0 && output->n > 0)
        answer->first_ms = clock_ms();
    answer->n = output->n;
    buffer_append_text(&answer->text, output->text);
    if (!answer->json)
        fputs(output->text, stdout);
    if (output->ended == NULL)
        return;
    answer->ended = true;
    answer->finish = finish_name(output->ended->finish_reason);
    if (output->ended->error != NULL)
        snprintf(answer->error, sizeof answer->error, "%s: %s", output->ended->error->code,
                 output->ended->error->message);
}

/* Reads until the answer or the stream ends. */
static status_t read_answer(client_t *client, rpc_stream_t *stream, answer_t *answer)
{
    while (!answer->ended) {
        Shoal__V1__GenerateResponse *message = NULL;
        TRY(client_read(stream, &shoal__v1__generate_response__descriptor, &message));
        if (message == NULL)
            return fail(STATUS_UNREACHABLE, "the stream ended before the answer did");
        if (message->message_case == SHOAL__V1__GENERATE_RESPONSE__MESSAGE_STARTED)
            take_started(client, answer, message->started);
        else if (message->message_case == SHOAL__V1__GENERATE_RESPONSE__MESSAGE_OUTPUT)
            take_output(answer, message->output);
        rpc_message_free(message);
        /* A text is shown as it comes; when nobody takes it the rest need not be computed. */
        status_t shown = output_written();
        if (shown != STATUS_OK && !answer->ended)
            return shown;
    }
    return STATUS_OK;
}

static void cancel_answer(client_t *client, const answer_t *answer)
{
    if (answer->id == NULL)
        return;
    Shoal__V1__CancelRequest request = SHOAL__V1__CANCEL_REQUEST__INIT;
    request.id = answer->id;
    Shoal__V1__CancelResponse *reply = NULL;
    if (client_call(client, "/shoal.v1.Inference/Cancel", &request,
                    &shoal__v1__cancel_response__descriptor, &reply) == STATUS_OK)
        rpc_message_free(reply);
}

/* Generate, and Resume as long as connections break. */
static status_t answer_prompt(client_t *client, const Shoal__V1__GenerateRequest *request,
                              answer_t *answer)
{
    status_t status = STATUS_OK;
    for (int tried = 0; tried < RESUMES_MAX && !answer->ended; tried++) {
        rpc_stream_t *stream = NULL;
        if (answer->id == NULL) {
            status = client_stream(client, "/shoal.v1.Inference/Generate", request, &stream);
        } else {
            Shoal__V1__ResumeRequest resume = SHOAL__V1__RESUME_REQUEST__INIT;
            resume.id = answer->id;
            resume.n = &answer->n;
            resume.n_n = 1;
            status = client_stream(client, "/shoal.v1.Inference/Resume", &resume, &stream);
        }
        if (status == STATUS_OK) {
            status = read_answer(client, stream, answer);
            rpc_stream_close(stream);
        }
        if (status != STATUS_UNREACHABLE || command_interrupted)
            break;
        client_next(client);
    }
    return status;
}

static void fill_sampling(const run_options_t *run, Shoal__V1__Sampling *sampling)
{
#define SET(field, case_name, value)                                                               \
    if (run->field##_given) {                                                                      \
        sampling->has_##field##_case = SHOAL__V1__SAMPLING__HAS_##case_name##_##case_name;         \
        sampling->field = (value);                                                                 \
    }
    SET(temperature, TEMPERATURE, (float)run->temperature)
    SET(top_k, TOP_K, (uint32_t)run->top_k)
    SET(top_p, TOP_P, (float)run->top_p)
    SET(min_p, MIN_P, (float)run->min_p)
    SET(seed, SEED, (uint64_t)run->seed)
    SET(max_tokens, MAX_TOKENS, (uint32_t)run->max_tokens)
#undef SET
}

static void print_end(const answer_t *answer)
{
    uint64_t now = clock_ms();
    double seconds = (double)(now - (answer->first_ms ? answer->first_ms : now)) / 1000;
    double rate = seconds > 0 && answer->n > 1 ? (answer->n - 1) / seconds : 0;
    double ttft_ms = answer->first_ms ? (double)(answer->first_ms - answer->began_ms) : 0;
    if (answer->json) {
        json_t *object = json_pack(
            "{s:s,s:s,s:I,s:I,s:s,s:o,s:s,s:f,s:f}", "id", answer->id, "text",
            buffer_text(&answer->text), "prompt_tokens", (json_int_t)answer->prompt_tokens,
            "completion_tokens", (json_int_t)answer->n, "finish_reason", answer->finish, "seed",
            output_seed(answer->seed), "text_identity", answer->text_identity, "tokens_per_s", rate,
            "ttft_ms", ttft_ms);
        output_json(object, true);
        json_decref(object);
        return;
    }
    putchar('\n');
    fflush(stdout);
    fprintf(stderr, "%u tokens, %.1f tok/s, TTFT %.0f ms (%s, seed %llu)\n", answer->n, rate, ttft_ms,
            answer->finish, (unsigned long long)answer->seed);
}

/* Builds the request around the prompt and asks. */
static status_t ask(client_t *client, const run_options_t *run, const char *prompt)
{
    char *text = mem_strdup(prompt), *system = mem_strdup(run->system ? run->system : "");
    char *model = mem_strdup(run->model ? run->model : "");
    char role_system[] = "system", role_user[] = "user";
    Shoal__V1__Message messages[2] = {SHOAL__V1__MESSAGE__INIT, SHOAL__V1__MESSAGE__INIT};
    messages[0].role = role_system;
    messages[0].content = system;
    messages[1].role = role_user;
    messages[1].content = text;
    Shoal__V1__Message *both[2] = {&messages[0], &messages[1]};
    Shoal__V1__Messages list = SHOAL__V1__MESSAGES__INIT;
    bool has_system = system[0] != 0;
    list.messages = has_system ? both : both + 1;
    list.n_messages = has_system ? 2 : 1;
    Shoal__V1__Sampling sampling = SHOAL__V1__SAMPLING__INIT;
    fill_sampling(run, &sampling);
    Shoal__V1__GenerateRequest request = SHOAL__V1__GENERATE_REQUEST__INIT;
    request.model = model;
    request.sampling = &sampling;
    if (run->raw) {
        request.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_PROMPT;
        request.prompt = text;
    } else {
        request.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_MESSAGES;
        request.messages = &list;
    }
    answer_t answer = {.began_ms = clock_ms(), .json = run->json, .finish = ""};
    status_t status = answer_prompt(client, &request, &answer);
    if (status == STATUS_OK)
        print_end(&answer);
    if (status == STATUS_OK && answer.error[0] != 0)
        status = fail(STATUS_ABORTED, "%s", answer.error);
    if (command_interrupted) {
        command_interrupted = 0;
        cancel_answer(client, &answer);
        status = fail(STATUS_CANCELLED, "cancelled");
    } else if (status == STATUS_IO && !answer.ended) {
        cancel_answer(client, &answer);
        status = output_written();
    }
    buffer_release(&answer.text);
    free(answer.id);
    free(answer.text_identity);
    free(text);
    free(system);
    free(model);
    return status;
}

status_t command_run(int argc, char **argv)
{
    cluster_options_t where = {0};
    run_options_t run = {0};
    const char *words[1];
    bool done = false;
    const option_t options[] = {
        DEPLOYMENT_OPTION(run.model),
        {"system", OPTION_TEXT, &run.system, NULL, "TEXT", "system message"},
        {"raw", OPTION_FLAG, &run.raw, NULL, NULL, "no chat template: the prompt as it is"},
        {"max-tokens", OPTION_INTEGER, &run.max_tokens, NULL, "N", "at most so many [256]", 1, 1e9, &run.max_tokens_given},
        {"temperature", OPTION_REAL, &run.temperature, NULL, "T", "0 is greedy [0]", 0, 2, &run.temperature_given},
        {"top-k", OPTION_INTEGER, &run.top_k, NULL, "K", "0 is off [0]", 0, 1e9, &run.top_k_given},
        {"top-p", OPTION_REAL, &run.top_p, NULL, "P", "[1]", 0, 1, &run.top_p_given},
        {"min-p", OPTION_REAL, &run.min_p, NULL, "P", "[0]", 0, 1, &run.min_p_given},
        {"seed", OPTION_INTEGER, &run.seed, NULL, "N", "same seed, same text [drawn]",
         0, 9007199254740991.0, &run.seed_given},
        OUTPUT_OPTION(&run.format), CLUSTER_DATA_OPTION(where), CLUSTER_ENDPOINT_OPTION(where), {0},
    };
    const options_help_t help = {
        "shoal run \"PROMPT\" [options]",
        "Answers one prompt with the model's chat template, streaming. The last line, on standard error,\n"
        "says tokens, tokens per second and the time to the first token.",
        "shoal run \"What is the capital of France?\" --temperature 0.7 --seed 1", options};
    TRY(command_options(&help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(run.format, &run.json));
    client_t *client;
    TRY(client_open(&where, &client));
    status_t status = ask(client, &run, words[0]);
    client_close(client);
    return status;
}
