/* The subcommands of `shoal`. Each lives in a file of its own and is one row of the table in main.c.
 * Data goes to standard output, everything else to standard error. What a command returns becomes
 * the exit code that the help text promises (status_exit_code); its failure text is printed by main. */
#ifndef SHOAL_CLI_COMMAND_H
#define SHOAL_CLI_COMMAND_H

#include "common/base/options.h"
#include "common/base/status.h"

typedef struct {
    const char *name;  /* "submit", or "jobs list" for a command of a group */
    const char *about; /* one line for the list of commands */
    /* argv[0] is the command's last word; the rest are its arguments. */
    status_t (*run)(int argc, char **argv);
} command_t;

/* Reads the command's options, handles --help (prints it and sets *done_out), and names the command
 * in what is wrong. `words` receives the words that are no options, exactly n_min to n_max of them. */
status_t command_options(const options_help_t *help, int argc, char **argv, const char **words,
                         size_t n_min, size_t n_max, size_t *n_out, bool *done_out) MUST_USE;

/* How replicas fill their steps, for `deploy` and `up`: two numbers and two flags. */
enum { COMMAND_CHUNK = 512, COMMAND_SPECULATE = 8 }; /* what a deployment without them gets, too */
#define COMMAND_DRAFT_MODEL_HELP \
    "a small model with the same tokenizer, which guesses ahead on the leader's host; the text is the same"
#define COMMAND_STEP_OPTIONS(chunk, speculate, no_prefix_cache, whole_prompts)                        \
    {"chunk", OPTION_INTEGER, chunk, "512", "N", "rows of a step, the largest piece of a prompt", 1, 8192}, \
    {"speculate", OPTION_INTEGER, speculate, "8", "N", "tokens guessed ahead for each sequence; 0: none", 0, 16}, \
    {"no-prefix-cache", OPTION_FLAG, no_prefix_cache, NULL, NULL, "beginnings of prompts are computed anew"}, \
    {"whole-prompts", OPTION_FLAG, whole_prompts, NULL, NULL, "prompts take whole steps, however many streams wait"}

/* Set while a command runs when SIGINT or SIGTERM came; long waits look at it. */
extern volatile int command_interrupted;

status_t command_version(int argc, char **argv);
status_t command_tokenize(int argc, char **argv);
status_t command_detokenize(int argc, char **argv);
status_t command_render(int argc, char **argv);
status_t command_eval(int argc, char **argv);
status_t command_bench(int argc, char **argv);
status_t command_profile(int argc, char **argv);
status_t command_inspect(int argc, char **argv);
status_t command_plan(int argc, char **argv);
status_t command_seal(int argc, char **argv);
status_t command_verify(int argc, char **argv);
status_t command_up(int argc, char **argv);
status_t command_down(int argc, char **argv);
status_t command_status(int argc, char **argv);
status_t command_run(int argc, char **argv);
status_t command_submit(int argc, char **argv);
status_t command_jobs_list(int argc, char **argv);
status_t command_jobs_get(int argc, char **argv);
status_t command_jobs_watch(int argc, char **argv);
status_t command_jobs_results(int argc, char **argv);
status_t command_jobs_cancel(int argc, char **argv);
status_t command_jobs_delete(int argc, char **argv);
status_t command_deploy(int argc, char **argv);
status_t command_undeploy(int argc, char **argv);
status_t command_scale(int argc, char **argv);
status_t command_drain(int argc, char **argv);
status_t command_hosts(int argc, char **argv);
status_t command_replicas(int argc, char **argv);
status_t command_adopt(int argc, char **argv);

#endif
