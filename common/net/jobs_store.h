/* Durable batch jobs and session pointers in Redis. Everything that changes state is one call of
 * the function library jobs.lua, which is atomic: all its checks come before its first write. This
 * file is the list of those operations, their results and arguments; it decides nothing.
 *
 * A job is made of items 0 … total-1. An item is
 *   waiting  (never claimed, or returned)  ->  claimed (process, attempt)  ->  ended (one record).
 * The first terminal record wins: a result, an error, or the job's own end by cancel or expiry,
 * which ends at one stroke every item that has no record yet. Every operation is safe to repeat:
 * that is what a caller does after JOBS_UNREACHABLE, which says that the outcome is not known.
 *
 * A process is one life of a coordinator: the mod-revision of the put that registered it in etcd,
 * within an incarnation of the cluster. Attempts of one item only rise. `fence` is the
 * create-revision of the election key; elected-only operations carry it and the highest wins.
 *
 * Callbacks run on the Redis client's I/O thread, never inside the call; exactly one for each call
 * that returned STATUS_OK; the reply and all it points to are borrowed for the callback. */
#ifndef SHOAL_COMMON_NET_JOBS_STORE_H
#define SHOAL_COMMON_NET_JOBS_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define JOBS_LIBRARY "shoal_jobs_v2"
#define JOBS_CHUNK_ITEMS_MAX 1000
#define JOBS_CHUNK_BYTES_MAX (1024 * 1024) /* bodies of one put together */
#define JOBS_ITEMS_MAX 1000000             /* of one job */
#define JOBS_CLAIM_MAX 1000                /* items of one claim, mine, adopt, release_process */
#define JOBS_RESULTS_MAX 1000              /* records of one page */
#define JOBS_RECORD_BYTES_MAX (4 * 1024 * 1024)
#define JOBS_POINTER_BYTES_MAX 256
#define JOBS_UPLOAD_TTL_MS (60 * 60 * 1000) /* items put and never submitted are forgotten */

typedef enum {
    JOBS_OK = 0,
    JOBS_DUP,         /* it was done before: the reply holds what is stored; accept that */
    JOBS_STALE,       /* (process, attempt) is not the current claim; or a lower owner number */
    JOBS_NOT_FOUND,   /* no such job, upload or pointer (deleted, or never there) */
    JOBS_CONFLICT,    /* the idempotency key stands for other items; or a compare failed */
    JOBS_FULL,        /* jobs_bytes_max or Redis's memory is reached; deleting jobs makes room */
    JOBS_FENCED,      /* a newer elected coordinator has written: this one is elected no more */
    JOBS_WRONG_STORE, /* emptied, restored or another cluster's: refused until adopted */
    JOBS_NOT_DURABLE, /* Redis is set to lose jobs; message names the setting; intake is refused */
    JOBS_INVALID,     /* an argument is out of its range; our own bug or a corrupt store */
    JOBS_UNREACHABLE, /* no answer: not known whether it was executed; repeat it */
} jobs_code_t;

typedef struct {
    uint64_t incarnation;
    uint64_t revision; /* mod-revision of the coordinator's registration in etcd; 0 is nobody */
} jobs_process_t;

typedef enum {
    JOBS_STATE_NONE = 0, /* in a poll: the job is gone */
    JOBS_STATE_QUEUED,
    JOBS_STATE_RUNNING,
    JOBS_STATE_SUCCEEDED,
    JOBS_STATE_CANCELLED,
    JOBS_STATE_EXPIRED,
} jobs_state_t;

typedef struct {
    const char *id; /* 32 hex digits */
    const char *deployment, *tenant, *display_name, *idempotency_key;
    int32_t priority;
    jobs_state_t state;
    uint64_t total, running, succeeded, failed, cancelled, expired;
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
    uint64_t create_ms, start_ms, end_ms, deadline_ms; /* Redis's clock, Unix; 0 is none */
    uint64_t version;                                  /* rises with every change */
    uint64_t sequence; /* order of submission over all jobs, the cursor of list */
} jobs_job_t;

/* A claimed item. */
typedef struct {
    const char *job;
    uint64_t index;
    uint64_t attempt; /* from 1 */
    uint64_t deaths;  /* ranks that died by their own doing with it so far */
    uint64_t seed;    /* of the item, unless its body names one; the same for every attempt */
    uint64_t deadline_left_ms; /* by Redis's clock when claimed; 0 is none */
    int32_t priority;
    const char *tenant, *deployment;
    const uint8_t *body; /* the line as it was put */
    size_t body_bytes;
} jobs_item_t;

typedef enum {
    JOBS_END_NONE = 0,
    JOBS_END_OK,
    JOBS_END_ERROR,
    JOBS_END_CANCELLED,
    JOBS_END_EXPIRED,
} jobs_end_t;

/* A terminal record. Items that a cancel or an expiry ended carry no record bytes but, in
 * jobs_results, the line as it was put, so that the reader can say their custom_id. */
typedef struct {
    uint64_t completion; /* 1 for the first item of the job that ended */
    uint64_t index;
    uint64_t attempts;
    jobs_end_t end;
    const uint8_t *record; /* as complete or fail gave it */
    size_t record_bytes;
    const uint8_t *body;
    size_t body_bytes;
} jobs_result_t;

typedef struct {
    bool exists;
    bool confirmed; /* etcd was once seen to agree */
    char uuid[33];
    uint64_t incarnation;
    uint64_t revision; /* the highest etcd revision that was reported */
} jobs_meta_t;

typedef struct {
    jobs_code_t code;
    const char *message; /* words for people; "" on JOBS_OK */
    const jobs_job_t *jobs;
    size_t n_jobs;
    const jobs_item_t *items;
    size_t n_items;
    const jobs_result_t *results;
    size_t n_results;
    const jobs_process_t *processes;
    size_t n_processes;
    uint64_t number;        /* what the operation says: deaths, remaining, owner, cursor … */
    jobs_meta_t meta;       /* of the meta operations */
    const uint8_t *pointer; /* of the session pointer operations */
    size_t pointer_bytes;
} jobs_reply_t;

typedef void (*jobs_reply_fn)(void *user, const jobs_reply_t *reply);

typedef struct jobs_store jobs_store_t;

typedef struct {
    bool connected;  /* to a Redis with our library */
    bool durable;    /* the durability gate is open */
    const char *why; /* what is wrong, naming the store and the setting; "" when all is well */
} jobs_health_t;

typedef struct {
    const char *url;
    const char *cluster;       /* name: 1 to 64 of [a-z0-9-]; prefix of every key */
    uint64_t jobs_bytes_max;   /* sum of all reservations; 0 takes 1 GiB */
    uint64_t call_timeout_ms;  /* 0 takes 5,000 */
    uint64_t gate_ms;          /* the gate is looked at this often; 0 takes 30,000 */
    /* Runs on the I/O thread at each change of health. May be NULL. Calls made while the library
     * or the gate of a new connection is not yet checked end as unreachable or not durable. */
    void (*on_health)(void *user, const jobs_health_t *health);
    void *user;
} jobs_store_config_t;

status_t jobs_store_open(const jobs_store_config_t *config, jobs_store_t **own_store_out) MUST_USE;
void jobs_store_close(jobs_store_t *take_store);

/* A copy of the present health for any thread; `why` is written to text. */
void jobs_store_health(jobs_store_t *store, bool *connected_out, bool *durable_out, char *text,
                       size_t text_bytes);

/* What every operation below claims to work on: Redis must hold the same, else JOBS_WRONG_STORE. */
void jobs_store_set_cluster(jobs_store_t *store, const char *uuid, uint64_t incarnation);

const char *jobs_code_name(jobs_code_t code);
/* The seed of item `index` of a job whose seed is `job_seed` (a mix, never 0, below
 * 2^53). */
uint64_t jobs_item_seed(uint64_t job_seed, uint64_t index);

/* ---- Which cluster. These do not need set_cluster. ----
 * Order at the very first start: create here, then etcd's meta with the uuid that came back, then
 * check. So etcd's meta never exists without Redis's, and a store that lacks it was emptied
 * (Redis: etcd has a meta; etcd: Redis's is confirmed). */

/* reply.meta. */
status_t jobs_meta_get(jobs_store_t *store, jobs_reply_fn fn, void *user) MUST_USE;
/* Makes the meta if absent, with incarnation 1; reply.meta is what stands there afterwards. */
status_t jobs_meta_create(jobs_store_t *store, const char *uuid, jobs_reply_fn fn,
                          void *user) MUST_USE;
/* What etcd says now. JOBS_OK raises the stored revision and confirms; JOBS_WRONG_STORE says in
 * words which of the two stores is behind or foreign. reply.meta is what stands there. */
status_t jobs_meta_check(jobs_store_t *store, const char *uuid, uint64_t incarnation,
                         uint64_t revision, jobs_reply_fn fn, void *user) MUST_USE;
/* An operator accepts: writes uuid, incarnation (which must be over the stored one, else
 * JOBS_CONFLICT unless all is equal already) and revision; forgets fence and revision of before.
 * Claims of processes of older incarnations stay until they are released. */
status_t jobs_meta_adopt(jobs_store_t *store, const char *uuid, uint64_t incarnation,
                         uint64_t revision, jobs_reply_fn fn, void *user) MUST_USE;

/* ---- Intake ---- */

typedef struct {
    const uint8_t *body;
    size_t body_bytes;
} jobs_body_t;

/* Adds items first … first+n-1 to an upload (32 hex digits, drawn by the caller; made by its first
 * put; nobody sees it). `reserve_bytes` is what bodies and expected results will take. A repeat is
 * JOBS_OK; a gap is JOBS_CONFLICT. JOBS_FULL, JOBS_NOT_DURABLE refuse. */
status_t jobs_put(jobs_store_t *store, const char *upload, uint64_t first, size_t n,
                  const jobs_body_t *bodies, uint64_t reserve_bytes, jobs_reply_fn fn,
                  void *user) MUST_USE;

typedef struct {
    const char *job; /* 32 hex digits, drawn by the caller; the same again is the same job */
    const char *upload;
    uint64_t total;  /* items that were put; another number is JOBS_CONFLICT */
    const char *deployment, *tenant, *display_name, *idempotency_key; /* key "" is none */
    const char *body_hash;  /* of header and items; compared when the key is known */
    int32_t priority;
    uint64_t deadline_ms;   /* from now on; 0 is none */
    uint64_t seed;          /* random; the seeds of the items derive from it */
    uint64_t item_tokens;   /* expected mean of prompt + answer, charged to the tenant at claim */
} jobs_submit_t;

/* Makes the upload a job, O(1). JOBS_OK: reply.jobs[0]. JOBS_DUP: reply.jobs[0] is the job that the
 * id or the idempotency key already stands for; this upload is then forgotten. JOBS_CONFLICT: the
 * key stands for other items. JOBS_NOT_FOUND: the upload expired. */
status_t jobs_submit(jobs_store_t *store, const jobs_submit_t *submit, jobs_reply_fn fn,
                     void *user) MUST_USE;
/* Forgets an upload that will not be submitted. Always JOBS_OK. */
status_t jobs_drop(jobs_store_t *store, const char *upload, jobs_reply_fn fn, void *user) MUST_USE;

/* ---- Claims ---- */

/* Hands out at most n items of jobs of this deployment: highest priority first, then the tenant
 * with the fewest tokens served, then the oldest job; in a job returned indices first. `nonce`
 * rises with each new claim of this (process, deployment), of which one is under way at a time: the
 * same nonce again returns those of the same items that are still claimed by it, a lower one is
 * JOBS_STALE. So is a process that was released or adopted away. reply.items; fewer than n may be
 * more later. */
status_t jobs_claim(jobs_store_t *store, const char *deployment, size_t n, jobs_process_t process,
                    uint64_t nonce, jobs_reply_fn fn, void *user) MUST_USE;
/* What this process holds, paged: cursor 0 first, then reply.number until that is 0. An item may
 * come twice over a paging, none is missed that was held throughout. */
status_t jobs_mine(jobs_store_t *store, jobs_process_t process, uint64_t cursor, jobs_reply_fn fn,
                   void *user) MUST_USE;
/* Moves claims of `from` to `to`, attempts unchanged, at most JOBS_CLAIM_MAX a call; reply.number
 * are left: call again until 0. `from` can claim no more. From then on every call names `to`; one
 * under `from` that was under way may end JOBS_STALE and is repeated under `to`. */
status_t jobs_adopt(jobs_store_t *store, jobs_process_t from, jobs_process_t to, jobs_reply_fn fn,
                    void *user) MUST_USE;

typedef struct {
    const char *job;
    uint64_t index;
    jobs_process_t process;
    uint64_t attempt;
} jobs_claim_t;

typedef struct {
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
} jobs_tokens_t;

/* Commits the item's record. JOBS_OK | JOBS_DUP (reply.results[0] is the stored record, or the
 * cancel or expiry of the job) | JOBS_STALE | JOBS_NOT_FOUND (the job was deleted). After each of
 * these the claim is over. Passes when Redis is out of memory. */
status_t jobs_complete(jobs_store_t *store, const jobs_claim_t *claim, jobs_tokens_t tokens,
                       const uint8_t *record, size_t record_bytes, jobs_reply_fn fn,
                       void *user) MUST_USE;
/* The same with an error as the item's end. */
status_t jobs_fail(jobs_store_t *store, const jobs_claim_t *claim, jobs_tokens_t tokens,
                   const uint8_t *record, size_t record_bytes, jobs_reply_fn fn,
                   void *user) MUST_USE;
/* Gives the item back: the next claim takes it first, with attempt + 1. JOBS_OK (also when it was
 * already given back) | JOBS_DUP | JOBS_STALE | JOBS_NOT_FOUND as above. */
status_t jobs_release(jobs_store_t *store, const jobs_claim_t *claim, jobs_reply_fn fn,
                      void *user) MUST_USE;
/* Counts a rank's death by its own doing against the item, once for each epoch. reply.number is the
 * count now. Needs the current claim: JOBS_STALE, JOBS_DUP, JOBS_NOT_FOUND as above. */
status_t jobs_note_death(jobs_store_t *store, const jobs_claim_t *claim, uint64_t epoch,
                         jobs_reply_fn fn, void *user) MUST_USE;

/* ---- Elected only; `fence` = (incarnation of set_cluster, create-revision) ---- */

/* Gives back everything a dead process holds, at most JOBS_CLAIM_MAX a call; reply.number are left.
 * From the first call on it can claim no more. */
status_t jobs_release_process(jobs_store_t *store, uint64_t fence, jobs_process_t process,
                              jobs_reply_fn fn, void *user) MUST_USE;
/* All processes that hold claims or have claimed: reply.processes (at most 1,000). */
status_t jobs_processes(jobs_store_t *store, jobs_reply_fn fn, void *user) MUST_USE;

/* ---- Jobs as a whole ---- */

/* Ends jobs whose deadline has passed by Redis's clock, at most 100 a call; any coordinator, any
 * time. reply.number ended now. */
status_t jobs_expire(jobs_store_t *store, jobs_reply_fn fn, void *user) MUST_USE;
/* O(1), idempotent: reply.jobs[0]; a job that ended before stays as it ended. */
status_t jobs_cancel(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user) MUST_USE;
/* Removes job, items, results and key. JOBS_NOT_FOUND the second time. Passes without memory. */
status_t jobs_delete(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user) MUST_USE;
status_t jobs_get(jobs_store_t *store, const char *job, jobs_reply_fn fn, void *user) MUST_USE;
/* Newest first, those with a sequence below `before` (0 from the newest); at most 1,000. */
status_t jobs_list(jobs_store_t *store, uint64_t before, size_t n, jobs_reply_fn fn,
                   void *user) MUST_USE;

/* reply.number: jobs of which no item was ever claimed. O(1). A job that a program of an older
 * library submitted is not counted, one that it began stays counted until it ends. */
status_t jobs_queued(jobs_store_t *store, jobs_reply_fn fn, void *user) MUST_USE;

typedef struct {
    const char *job;
    uint64_t after_version;
} jobs_seen_t;

/* reply.jobs: the present state of those of at most 1,000 jobs whose version is over the given one,
 * and state NONE (only `id` set) for those that are gone. How coordinators learn of cancel and
 * expiry of what they run, and how Watch is fed. */
status_t jobs_poll(jobs_store_t *store, size_t n, const jobs_seen_t *seen, jobs_reply_fn fn,
                   void *user) MUST_USE;
/* Records with a completion over `after`, in order, at most n. reply.jobs[0] is the job. Items that
 * a cancel or an expiry ended follow after the others, each once. */
status_t jobs_results(jobs_store_t *store, const char *job, uint64_t after, size_t n,
                      jobs_reply_fn fn, void *user) MUST_USE;

/* ---- Session pointers: <= 256 opaque bytes with an owner number and a time to live ---- */

/* Writes the pointer if none of a higher owner stands there (JOBS_STALE, number the owner). */
status_t jobs_req_put(jobs_store_t *store, const char *id, uint64_t owner, const uint8_t *pointer,
                      size_t bytes, uint64_t ttl_ms, jobs_reply_fn fn, void *user) MUST_USE;
/* reply.number the owner, reply.pointer. */
status_t jobs_req_get(jobs_store_t *store, const char *id, jobs_reply_fn fn, void *user) MUST_USE;
/* Takes a session over: if the owner is still `owner` it becomes owner + 1 (reply.number) and the
 * pointer the given one; else JOBS_CONFLICT with reply.number and reply.pointer as they stand. */
status_t jobs_req_take(jobs_store_t *store, const char *id, uint64_t owner, const uint8_t *pointer,
                       size_t bytes, uint64_t ttl_ms, jobs_reply_fn fn, void *user) MUST_USE;
status_t jobs_req_drop(jobs_store_t *store, const char *id, uint64_t owner, jobs_reply_fn fn,
                       void *user) MUST_USE;

#endif
