/* See rank_rig.h. */
#include "rank_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void on_active(void *context, const char *identity, uint64_t kv_tokens, uint32_t context_max)
{
    epoch_t *epoch = context;
    assert_string_equal(identity, rank_text_identity(epoch->rank));
    assert_int_equal(kv_tokens, rank_kv_tokens(epoch->rank)); /* no other rank has less */
    assert_int_equal(context_max, rank_context_max(epoch->rank));
    pthread_mutex_lock(&epoch->lock);
    epoch->active = true;
    pthread_cond_broadcast(&epoch->changed);
    pthread_mutex_unlock(&epoch->lock);
}

static void on_planned(void *context, uint64_t step, uint32_t n,
                       const char (*sessions)[SESSION_BYTES])
{
    epoch_t *epoch = context;
    assert_true(step > 0 && n > 0 && sessions[n - 1][0] != 0);
    epoch->n_flying_most = n > epoch->n_flying_most ? n : epoch->n_flying_most;
}

static void *run_epoch(void *argument)
{
    epoch_t *epoch = argument;
    rank_callbacks_t callbacks = {
        .context = epoch, .active = on_active, .planned = on_planned, .pulse = &epoch->pulse};
    epoch->status = rank_run(epoch->rank, NULL, epoch->leader, &callbacks);
    snprintf(epoch->text, sizeof epoch->text, "%s", status_text());
    return NULL;
}

void epoch_begin(epoch_t *epoch, rank_t *rank)
{
    *epoch = (epoch_t){.rank = rank};
    epoch->leader = leader_new();
    pthread_mutex_init(&epoch->lock, NULL);
    pthread_cond_init(&epoch->changed, NULL);
    assert_int_equal(leader_stream_open(epoch->leader, NULL, NULL), 0); /* not active yet */
    assert_int_equal(pthread_create(&epoch->thread, NULL, run_epoch, epoch), 0);
    pthread_mutex_lock(&epoch->lock);
    while (!epoch->active)
        pthread_cond_wait(&epoch->changed, &epoch->lock);
    pthread_mutex_unlock(&epoch->lock);
}

void epoch_end(epoch_t *epoch)
{
    leader_stop(epoch->leader);
    pthread_join(epoch->thread, NULL);
    leader_free(epoch->leader);
    pthread_mutex_destroy(&epoch->lock);
    pthread_cond_destroy(&epoch->changed);
}

/* ---- a coordinator's side ---- */

static void ring(void *context)
{
    client_t *client = context;
    pthread_mutex_lock(&client->lock);
    client->news = true;
    pthread_cond_signal(&client->rung);
    pthread_mutex_unlock(&client->lock);
}

void client_open(client_t *client, epoch_t *epoch)
{
    *client = (client_t){.epoch = epoch};
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->rung, NULL);
    client->stream = leader_stream_open(epoch->leader, ring, client);
}

void client_close(client_t *client)
{
    leader_stream_close(client->epoch->leader, client->stream);
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->rung);
}

void rig_next_output(client_t *client, sequence_output_t *out, sampled_t *drawn)
{
    while (!leader_take(client->epoch->leader, client->stream, out, drawn)) {
        pthread_mutex_lock(&client->lock);
        while (!client->news)
            pthread_cond_wait(&client->rung, &client->lock);
        client->news = false;
        pthread_mutex_unlock(&client->lock);
    }
}

void rig_request(admission_t *admission, const char *session, uint32_t salt, uint32_t n_prompt,
                 uint32_t n_ids, uint32_t *prompt)
{
    assert_true(n_prompt <= RIG_PROMPT_MAX && n_ids <= RIG_IDS_MAX);
    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = (salt * 31 + i * 17) % 320;
    *admission = (admission_t){.owner = 1,
                               .prompt = prompt,
                               .n_prompt = n_prompt,
                               .sampling = sampling_default,
                               .max_tokens = n_ids,
                               .logits_from = LOGITS_NONE};
    admission->sampling.temperature = salt % 2 ? 0.8f : 0;
    admission->sampling.repetition_penalty = 1.1f;
    admission->sampling.seed = salt;
    admission->sampling.want_logprobs = true;
    admission->sampling.n_top = 2;
    snprintf(admission->session, sizeof admission->session, "%s", session);
}

void rig_collect(const sequence_output_t *out, text_t *text)
{
    for (uint32_t i = 0; i < out->n_ids; i++) {
        assert_true(out->first_position + i < RIG_IDS_MAX);
        text->ids[out->first_position + i] = out->ids[i];
        text->n = out->first_position + i + 1;
        if (out->has_logprobs) {
            assert_int_equal(out->drawn[i].id, out->ids[i]);
            assert_int_equal(out->drawn[i].n_top, 2);
            assert_true(out->drawn[i].logprob <= 0);
            assert_true(out->drawn[i].top[0].logprob >= out->drawn[i].top[1].logprob);
            text->logprobs[out->first_position + i] = out->drawn[i].logprob;
        }
    }
    text->end = out->end;
}

void rig_follow(client_t *client, text_t *text)
{
    sequence_output_t out;
    sampled_t drawn[SCHEDULER_OUTPUT_IDS_MAX];
    do {
        rig_next_output(client, &out, drawn);
        rig_collect(&out, text);
    } while (out.end == END_NONE);
}

static void follow_texts(client_t *client, uint32_t n_texts, drawn_text_t *texts)
{
    sequence_output_t out;
    sampled_t drawn[SCHEDULER_OUTPUT_IDS_MAX];
    for (uint32_t n_ended = 0; n_ended < n_texts;) {
        rig_next_output(client, &out, drawn);
        unsigned long number = strtoul(out.session, NULL, 10);
        assert_true(number < n_texts);
        drawn_text_t *text = &texts[number];
        assert_int_equal(out.first_position, text->n);
        assert_true(text->n + out.n_ids <= RIG_IDS_MAX);
        for (uint32_t i = 0; i < out.n_ids; i++) {
            assert_int_equal(drawn[i].id, out.ids[i]);
            text->ids[text->n] = out.ids[i];
            text->drawn[text->n++] = drawn[i];
        }
        assert_true(out.end == END_NONE || out.end == END_FINISHED);
        n_ended += out.end != END_NONE;
    }
}

void rig_run_texts(rank_t *rank, uint32_t n_texts,
                   void (*admit)(client_t *client, uint32_t number, uint32_t vocab),
                   drawn_text_t *texts_out, scheduler_load_t *load_out)
{
    epoch_t epoch;
    client_t client;
    memset(texts_out, 0, n_texts * sizeof *texts_out);
    epoch_begin(&epoch, rank);
    client_open(&client, &epoch);
    for (uint32_t i = 0; i < n_texts; i++)
        admit(&client, i, rank_vocab(rank));
    follow_texts(&client, n_texts, texts_out);
    leader_load(epoch.leader, load_out);
    client_close(&client);
    epoch_end(&epoch);
    assert_int_equal(epoch.status, STATUS_OK);
}
