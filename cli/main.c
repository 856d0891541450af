/* `shoal`: the one command people type. This file only finds the subcommand and turns its result
 * into words and an exit code. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "cli/output.h"
#include "common/base/log.h"

volatile int command_interrupted;

static const command_t commands[] = {
    {"up", "start a cluster on this machine", command_up},
    {"down", "stop it", command_down},
    {"status", "stores, coordinators, replicas, and where each layer and slice runs", command_status},
    {"run", "answer one prompt, streaming", command_run},
    {"submit", "submit a file of prompts as a batch job", command_submit},
    {"jobs list", "list jobs, newest first", command_jobs_list},
    {"jobs get", "show a job", command_jobs_get},
    {"jobs watch", "follow a job until it ends", command_jobs_watch},
    {"jobs results", "print a job's results", command_jobs_results},
    {"jobs cancel", "cancel a job", command_jobs_cancel},
    {"jobs delete", "delete a job and its results", command_jobs_delete},
    {"deploy", "serve a model", command_deploy},
    {"undeploy", "stop serving a model", command_undeploy},
    {"scale", "change replicas, slices or stages of a deployment", command_scale},
    {"drain", "move everything away from a host", command_drain},
    {"hosts", "list hosts", command_hosts},
    {"replicas", "list replicas and their counters", command_replicas},
    {"adopt", "accept a restored or emptied store", command_adopt},
    {"tokenize", "text to token ids", command_tokenize},
    {"detokenize", "token ids to text", command_detokenize},
    {"render", "messages to the text of a chat template", command_render},
    {"eval", "logits and log-probabilities of token ids, without a cluster", command_eval},
    {"bench", "measure tokens per second, without a cluster", command_bench},
    {"profile", "show where a step's time goes, without a cluster", command_profile},
    {"inspect", "describe a model: parameters, bytes, KV cache, what is unsupported",
     command_inspect},
    {"plan", "whether a model fits on given hosts, in which shape, how fast at best", command_plan},
    {"seal", "write down the digests of a model's files", command_seal},
    {"verify", "check a model's files against its seal", command_verify},
    {"version", "print the version", command_version},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

/* All commands, or those of a group. */
static void print_usage(FILE *out, const char *group)
{
    size_t n = group ? strlen(group) : 0;
    fprintf(out, "Usage: shoal %s%sCOMMAND [options]\n\nCommands:\n", group ? group : "",
            group ? " " : "");
    for (int i = 0; i < N_COMMANDS; i++)
        if (group == NULL ||
            (strncmp(commands[i].name, group, n) == 0 && commands[i].name[n] == ' '))
            fprintf(out, "  %-14s %s\n", commands[i].name, commands[i].about);
    fprintf(out, "\n`shoal COMMAND --help` shows a command's options and an example.\n"
                 "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused, 5 conflict, "
                 "6 unreachable, 7 timed out.\n");
}

/* Finds the command that argv[1] (and argv[2], in a group) names; *words_out says how many it took. */
static const command_t *find(int argc, char **argv, int *words_out)
{
    for (int i = 0; i < N_COMMANDS; i++) {
        const char *space = strchr(commands[i].name, ' ');
        size_t n = space ? (size_t)(space - commands[i].name) : strlen(commands[i].name);
        if (argc < 2 || strlen(argv[1]) != n || strncmp(argv[1], commands[i].name, n) != 0)
            continue;
        if (space != NULL && (argc < 3 || strcmp(argv[2], space + 1) != 0))
            continue;
        *words_out = space ? 2 : 1;
        return &commands[i];
    }
    return NULL;
}

static bool asks_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0;
}

/* What was typed names no command: shows what there is, and returns the exit code. */
static int no_command(int argc, char **argv)
{
    bool group = argc >= 2 && strcmp(argv[1], "jobs") == 0;
    int at = group ? 2 : 1;
    bool asked = argc <= at || asks_help(argv[at]);
    if (!asked)
        fprintf(stderr, "shoal: unknown command \"%s%s%s\"\n\n", argv[1], argc > 2 ? " " : "",
                argc > 2 ? argv[2] : "");
    print_usage(asked ? stdout : stderr, group ? argv[1] : NULL);
    return asked ? 0 : 2;
}

/* Output that was lost is a failure, whatever the command itself thought: a script must not go on
 * with half of an answer. */
static int finish(const char *name, status_t status)
{
    if (status == STATUS_OK)
        status = output_written();
    if (status != STATUS_OK)
        fprintf(stderr, "shoal %s: %s\n", name, status_text());
    return status_exit_code(status);
}

static void interrupted(int number)
{
    command_interrupted = number;
}

status_t command_options(const options_help_t *help, int argc, char **argv, const char **words,
                         size_t n_min, size_t n_max, size_t *n_out, bool *done_out)
{
    size_t n = 0;
    TRY(options_read(help->options, argc, argv, words, n_max, &n, done_out));
    if (*done_out) {
        options_print_help(help);
        return STATUS_OK;
    }
    if (n < n_min)
        return fail(STATUS_INVALID, "too few words; usage: %s", help->usage);
    if (n_out != NULL)
        *n_out = n;
    return STATUS_OK;
}

status_t command_version(int argc, char **argv)
{
    const char *format;
    const option_t options[] = {OUTPUT_OPTION(&format), {0}};
    const options_help_t help = {"shoal version [options]", "Prints the version.", "shoal version",
                                 options};
    bool done = false, json = false;
    TRY(command_options(&help, argc, argv, NULL, 0, 0, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(format, &json));
    if (json)
        puts("{\"version\": \"" SHOAL_VERSION "\"}");
    else
        puts("shoal " SHOAL_VERSION);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    log_start("shoal");
    int words = 0;
    static char version[] = "version";
    if (argc >= 2 && strcmp(argv[1], "--version") == 0)
        argv[1] = version;
    const command_t *command = find(argc, argv, &words);
    if (command == NULL) {
        int code = no_command(argc, argv);
        return code ? code : finish("help", STATUS_OK);
    }
    struct sigaction action = {.sa_handler = interrupted};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    return finish(command->name, command->run(argc - words, argv + words));
}
