/* What an agent makes of the beats of its ranks: who is silent or stands still and has to be killed,
 * and how far those are that load their weights. See agent_core.h. */
#include <stdio.h>

#include "worker/agent_core_internal.h"

#define SILENT_TICKS (CONTROL_SILENCE_MS / AGENT_TICK_MS)
#define STUCK_TICKS (AGENT_STUCK_MS / AGENT_TICK_MS)
#define STUCK_IDLE_TICKS (AGENT_STUCK_IDLE_MS / AGENT_TICK_MS)
/* Less than 2 % of a processor; beating alone takes about 0.1 %. */
#define IDLE_CPU_MS (AGENT_STUCK_IDLE_MS / 50)

void agent_take_beat(agent_rank_t *rank, const control_beat_t *beat)
{
    rank->beaten = true;
    rank->loading = beat->loading != 0;
    rank->loaded_percent = rank->loading && beat->loaded_percent < 100 ? beat->loaded_percent : 99;
    rank->cpu_ms = beat->cpu_ms;
    if (!beat->busy || beat->progress != rank->progress) {
        rank->ticks_stuck = 0;
        rank->cpu_ms_then = beat->cpu_ms;
    }
    rank->progress = beat->progress;
    rank->sequences = beat->sequences;
    rank->idle_beats = rank->sequences == 0 ? rank->idle_beats + 1 : 0;
}

void agent_watch_rank(agent_core_t *core, agent_rank_t *rank, uint64_t now_ms)
{
    char why[96];
    if (rank->state == RANK_NONE || rank->state == RANK_DYING)
        return;
    rank->ticks_silent++;
    rank->ticks_stuck++;
    bool idle = rank->cpu_ms - rank->cpu_ms_then < IDLE_CPU_MS;
    uint32_t load_ms = core->config.load_stuck_ms;
    load_ms = load_ms ? load_ms : AGENT_STUCK_LOADING_MS;
    if (rank->beaten && rank->ticks_silent > SILENT_TICKS) {
        snprintf(why, sizeof why, "no progress beat for %u ms", CONTROL_SILENCE_MS);
        agent_kill(core, rank, why, false, now_ms);
    } else if (!rank->beaten && now_ms - rank->since_ms > AGENT_HELLO_MS) {
        agent_kill(core, rank, "it did not say a word after its start", false, now_ms);
    } else if (rank->state == RANK_STOPPING && now_ms - rank->since_ms > AGENT_STOP_MS) {
        agent_kill(core, rank, "it did not stop when told to", true, now_ms);
    } else if (rank->loading && rank->ticks_stuck > load_ms / AGENT_TICK_MS) {
        snprintf(why, sizeof why, "loading (%u %%) without progress for %u ms",
                 rank->loaded_percent, load_ms);
        agent_kill(core, rank, why, false, now_ms);
    } else if (rank->ticks_stuck > STUCK_IDLE_TICKS && idle && rank->beaten && !rank->loading) {
        snprintf(why, sizeof why, "busy without progress and without computing for %u ms",
                 AGENT_STUCK_IDLE_MS);
        agent_kill(core, rank, why, false, now_ms);
    } else if (!rank->loading && rank->ticks_stuck > STUCK_TICKS) {
        snprintf(why, sizeof why, "busy without progress for %u ms", AGENT_STUCK_MS);
        agent_kill(core, rank, why, false, now_ms);
    }
}

/* The least of the ranks here that load; 100 when none does. */
static uint32_t percent_of(const agent_core_t *core, uint32_t slot)
{
    uint32_t least = 100;
    agent_replica_state_t state = core->replicas[slot].state;
    if (state != REPLICA_FORMING && state != REPLICA_SENT)
        return least;
    for (uint32_t i = 0; i < AGENT_RANKS_MAX; i++) {
        const agent_rank_t *rank = &core->ranks[i];
        bool counts = rank->state == RANK_STARTING || rank->state == RANK_READY;
        if (counts && rank->replica == slot && rank->loading && rank->loaded_percent < least)
            least = rank->loaded_percent;
    }
    return least;
}

/* Loads that take long are shown, one write a second at most and only when it says something new. */
void agent_show_loading(agent_core_t *core, uint32_t slot, uint64_t now_ms)
{
    agent_replica_t *replica = &core->replicas[slot];
    uint32_t percent = percent_of(core, slot);
    bool loads = percent < 100 || replica->loading_shown;
    if (!loads || !replica->loading_begun) {
        replica->loading_begun = loads;
        replica->loading_told_ms = now_ms + AGENT_LOADING_SHOWN_MS - AGENT_LOADING_TELL_MS;
        return;
    }
    if (percent < 100 && (now_ms < replica->loading_told_ms + AGENT_LOADING_TELL_MS ||
                          (replica->loading_shown && percent == replica->loading_percent)))
        return;
    replica->loading_shown = percent < 100;
    replica->loading_percent = percent;
    replica->loading_told_ms = now_ms;
    if (replica->state == REPLICA_NONE)
        return; /* what was shown of it is taken away with its last epoch */
    agent_action_t *action = agent_act(core, AGENT_PUBLISH_LOADING);
    action->replica = slot;
    action->epoch = replica->plan.epoch;
    action->percent = percent;
}
