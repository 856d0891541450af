/* `shoal seal` and `shoal verify`: which files a model has and what is in them, written down once
 * and checked wherever it was copied to. Without a cluster. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "cli/output.h"
#include "common/base/memory.h"
#include "common/model/manifest.h"

/* What one file is told as: a line for people, an object for programs. */
typedef struct {
    json_t *files; /* NULL: lines */
} report_t;

static void tell(void *context, const char *name, const char *problem)
{
    report_t *report = context;
    if (report->files != NULL)
        json_array_append_new(report->files,
                              problem == NULL ? json_pack("{s:s,s:b}", "file", name, "ok", 1)
                                              : json_pack("{s:s,s:b,s:s}", "file", name, "ok", 0,
                                                          "problem", problem));
    else
        printf("%-8s %s%s%s\n", problem == NULL ? "ok" : "WRONG", name,
               problem == NULL ? "" : ": ", problem == NULL ? "" : problem);
    fflush(stdout);
}

typedef status_t (*work_fn)(const char *model_path, const char *key_path, manifest_file_fn on_file,
                            void *context);

static status_t work(const options_help_t *help, int argc, char **argv, const char **format,
                     const char **key, work_fn run)
{
    const char *words[1];
    bool done = false, json = false;
    TRY(command_options(help, argc, argv, words, 1, 1, NULL, &done));
    if (done)
        return STATUS_OK;
    TRY(output_format(*format, &json));
    report_t report = {.files = json ? json_array() : NULL};
    status_t status = run(words[0], *key, tell, &report);
    if (json)
        output_json(report.files, false);
    json_decref(report.files);
    return status;
}

status_t command_seal(int argc, char **argv)
{
    const char *format, *key = NULL;
    const option_t options[] = {
        {"key", OPTION_TEXT, &key, NULL, "FILE",
         "sign the seal with this Ed25519 private key (PEM, `openssl genpkey -algorithm ed25519`)"},
        OUTPUT_OPTION(&format),
        {0},
    };
    const options_help_t help = {
        "shoal seal PATH [options]",
        "Writes the SHA-256 of every file of a model to PATH/manifest.sha256, or beside a single\n"
        "file to FILE.sha256. `sha256sum --check` reads it too. Links are refused; hidden files\n"
        "and folders inside are left out.",
        "shoal seal models/smollm2", options};
    return work(&help, argc, argv, &format, &key, manifest_seal);
}

status_t command_verify(int argc, char **argv)
{
    const char *format, *key = NULL;
    const option_t options[] = {
        {"public-key", OPTION_TEXT, &key, NULL, "FILE",
         "the seal must be signed by the owner of this Ed25519 public key (PEM)"},
        OUTPUT_OPTION(&format),
        {0},
    };
    const options_help_t help = {
        "shoal verify PATH [options]",
        "Checks every file of a model against its seal and names those that changed, are missing,\n"
        "were added or became links. The exit code is 5 when any is not as sealed.",
        "shoal verify models/smollm2 --public-key release.pub", options};
    return work(&help, argc, argv, &format, &key, manifest_verify);
}
