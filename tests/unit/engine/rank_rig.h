/* A rank and its leader in one process, and a coordinator's side of them: an epoch runs on a thread of
 * its own, clients open streams, admit sequences and follow them to their ends. */
#ifndef SHOAL_TESTS_ENGINE_RANK_RIG_H
#define SHOAL_TESTS_ENGINE_RANK_RIG_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/engine/rank.h"

enum { RIG_PROMPT_MAX = 256, RIG_IDS_MAX = 256 };

typedef struct {
    rank_t *rank;
    leader_t *leader;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool active;
    status_t status; /* of the epoch, once it has ended */
    char text[STATUS_TEXT_MAX];
    rank_pulse_t pulse;
    uint32_t n_flying_most; /* sequences in one step */
} epoch_t;

/* One thread at a time owns the rank: the epoch's, from here to epoch_end(). */
void epoch_begin(epoch_t *epoch, rank_t *rank);
void epoch_end(epoch_t *epoch);

typedef struct {
    epoch_t *epoch;
    uint32_t stream;
    pthread_mutex_t lock;
    pthread_cond_t rung;
    bool news;
} client_t;

void client_open(client_t *client, epoch_t *epoch);
void client_close(client_t *client);

typedef struct {
    uint32_t n;
    uint32_t ids[RIG_IDS_MAX];
    float logprobs[RIG_IDS_MAX];
    end_reason_t end;
} text_t;

/* n_prompt ids below 320 that depend on the salt, of which odd ones are drawn from a distribution
 * and even ones greedily; `ids` is kept as long as the admission. */
void rig_request(admission_t *admission, const char *session, uint32_t salt, uint32_t n_prompt,
                 uint32_t n_ids, uint32_t *prompt);
/* Takes what comes next for any session of the client. */
void rig_next_output(client_t *client, sequence_output_t *out, sampled_t *drawn);
/* Adds what came to the text of its session. */
void rig_collect(const sequence_output_t *out, text_t *text);
/* A text with all that was drawn for it. */
typedef struct {
    uint32_t n;
    uint32_t ids[RIG_IDS_MAX];
    sampled_t drawn[RIG_IDS_MAX];
} drawn_text_t;

/* One epoch of the rank, in which admit() asks for each text by its number as the session's name;
 * each must end finished. */
void rig_run_texts(rank_t *rank, uint32_t n_texts,
                   void (*admit)(client_t *client, uint32_t number, uint32_t vocab),
                   drawn_text_t *texts_out, scheduler_load_t *load_out);
/* Follows the client's only session to its end; text->n ids are there already. */
void rig_follow(client_t *client, text_t *text);

#endif
