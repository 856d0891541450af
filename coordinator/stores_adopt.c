/* Adoption: an operator accepts a store that was emptied or restored. Both stores get the uuid of
 * the one that stays and an incarnation over both, so that whatever was written under the old one
 * (claims, plans, elections) is told apart from now on. Each step may be repeated: whoever dies in
 * between leaves stores that still disagree, and the next adoption goes on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/stores_state.h"

typedef struct {
    look_t look; /* first, so that its functions can be given an adoption */
    char store[8];
    uint64_t incarnation;
    char uuid[33];
    stores_adopted_fn fn;
    void *user;
} adoption_t;

static void end_adoption(adoption_t *take_adoption, status_t status, const char *text)
{
    take_adoption->fn(take_adoption->user, status, text, take_adoption->incarnation);
    if (status == STATUS_OK)
        stores_verify(take_adoption->look.shell);
    free(take_adoption);
}

static void on_adopted_task(shell_t *shell, void *take_data)
{
    (void)shell;
    adoption_t *adoption = take_data;
    if (adoption->look.redis_code == JOBS_OK)
        end_adoption(adoption, STATUS_OK, "");
    else
        end_adoption(adoption, STATUS_UNREACHABLE, adoption->look.text);
}

static void on_adopt_reply(void *user, const jobs_reply_t *reply)
{
    adoption_t *adoption = user;
    adoption->look.redis_code = reply->code;
    snprintf(adoption->look.text, sizeof adoption->look.text, "%s", reply->message);
    shell_post(adoption->look.shell, on_adopted_task, adoption);
}

static void on_meta_written_task(shell_t *shell, void *take_data)
{
    adoption_t *adoption = take_data;
    if (adoption->look.etcd_status != STATUS_OK)
        end_adoption(adoption, adoption->look.etcd_status, adoption->look.text);
    else if (!atomic_load(&shell->running) ||
             jobs_meta_adopt(shell->jobs, adoption->uuid, adoption->incarnation,
                             (uint64_t)adoption->look.etcd_revision, on_adopt_reply,
                             adoption) != STATUS_OK)
        end_adoption(adoption, STATUS_UNREACHABLE, "redis takes no call now");
}

static void on_meta_written(void *context, const etcd_result_t *result)
{
    adoption_t *adoption = context;
    adoption->look.etcd_status = result->status != STATUS_OK ? result->status
                                 : result->succeeded         ? STATUS_OK
                                                             : STATUS_CONFLICT;
    adoption->look.etcd_revision = result->revision;
    snprintf(adoption->look.text, sizeof adoption->look.text, "etcd: %s",
             result->status == STATUS_OK ? "the meta was changed meanwhile; look at status and "
                                           "repeat"
                                         : result->message);
    shell_post(adoption->look.shell, on_meta_written_task, adoption);
}

static void on_adopt_read(shell_t *shell, void *take_data)
{
    adoption_t *adoption = take_data;
    look_t *look = &adoption->look;
    if (look->etcd_status != STATUS_OK || look->redis_code != JOBS_OK) {
        end_adoption(adoption, STATUS_UNREACHABLE,
                     "both etcd and redis must answer before one of them is adopted");
        return;
    }
    /* The store that stays says who we are; the incarnation is over both. */
    bool etcd_stays = strcmp(adoption->store, "redis") == 0;
    if (etcd_stays ? !look->etcd_has : !look->redis.exists) {
        end_adoption(adoption, STATUS_REFUSED,
                     etcd_stays ? "etcd holds no cluster either; adopt etcd"
                                : "redis holds no cluster either; adopt redis");
        return;
    }
    snprintf(adoption->uuid, sizeof adoption->uuid, "%s",
             etcd_stays ? look->etcd_uuid : look->redis.uuid);
    uint64_t highest = look->etcd_incarnation > look->redis.incarnation ? look->etcd_incarnation
                                                                        : look->redis.incarnation;
    adoption->incarnation = highest + 1;
    log_warn("adopting %s: incarnation %llu", adoption->store,
             (unsigned long long)adoption->incarnation);
    stores_write_meta(shell, adoption->uuid, adoption->incarnation, look->etcd_mod_revision,
                    on_meta_written, adoption);
}

static void on_adopt_get(void *user, const jobs_reply_t *reply)
{
    adoption_t *adoption = user;
    adoption->look.redis_code = reply->code;
    adoption->look.redis = reply->meta;
    shell_post(adoption->look.shell, on_adopt_read, adoption);
}

static void adopt_read_redis(shell_t *shell, void *take_data)
{
    adoption_t *adoption = take_data;
    if (!atomic_load(&shell->running) ||
        jobs_meta_get(shell->jobs, on_adopt_get, adoption) != STATUS_OK)
        end_adoption(adoption, STATUS_UNREACHABLE, "redis takes no call now");
}

static void on_adopt_etcd_read(void *context, const etcd_result_t *result)
{
    adoption_t *adoption = context;
    stores_read_meta(result, &adoption->look);
    shell_post(adoption->look.shell, adopt_read_redis, adoption);
}

void stores_adopt(shell_t *shell, const char *store, stores_adopted_fn fn, void *user)
{
    adoption_t *adoption = MEM_NEW(adoption_t);
    adoption->look.shell = shell;
    adoption->fn = fn;
    adoption->user = user;
    snprintf(adoption->store, sizeof adoption->store, "%s", store);
    core_store_state_t told = strcmp(store, "etcd") == 0 ? shell->stores->etcd_told
                                                         : shell->stores->redis_told;
    if (told != CORE_STORE_FOREIGN) {
        end_adoption(adoption, STATUS_REFUSED,
                     "there is nothing to adopt: this store is the cluster's, or does not answer");
        return;
    }
    char *key = stores_key(shell, "meta");
    etcd_get(shell->etcd, key, on_adopt_etcd_read, adoption);
    free(key);
}
