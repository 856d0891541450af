/* `shoal jobs …`: look at jobs, follow them, fetch their results, end and remove them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_view.h"
#include "cli/output.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"

/* Options that all of these have, and the job's id where one is wanted. */
typedef struct {
    cluster_options_t where;
    const char *format;
    bool json, done;
    char *id;
    client_t *client;
} jobs_command_t;

static status_t begin(jobs_command_t *command, int argc, char **argv, const char *usage, const char *about,
                      const char *example, bool with_id)
{
    const char *words[1] = {NULL};
    const option_t options[] = {OUTPUT_OPTION(&command->format), CLUSTER_DATA_OPTION(command->where),
                                CLUSTER_ENDPOINT_OPTION(command->where), {0}};
    const options_help_t help = {usage, about, example, options};
    TRY(command_options(&help, argc, argv, words, with_id, with_id, NULL, &command->done));
    if (command->done)
        return STATUS_OK;
    TRY(output_format(command->format, &command->json));
    TRY(client_open(&command->where, &command->client));
    command->id = mem_strdup(words[0] ? words[0] : "");
    return STATUS_OK;
}

static void end(jobs_command_t *command)
{
    free(command->id);
    client_close(command->client);
}

status_t command_jobs_list(int argc, char **argv)
{
    jobs_command_t command = {0};
    TRY(begin(&command, argc, argv, "shoal jobs list [options]", "Lists jobs, newest first.",
              "shoal jobs list -o json", false));
    if (command.done)
        return STATUS_OK;
    json_t *rows = json_array();
    char *token = mem_strdup("");
    status_t status;
    do {
        Shoal__V1__ListJobsRequest request = SHOAL__V1__LIST_JOBS_REQUEST__INIT;
        request.page_size = 200;
        request.page_token = token;
        Shoal__V1__ListJobsResponse *reply;
        status = client_call(command.client, "/shoal.v1.Jobs/List", &request,
                             &shoal__v1__list_jobs_response__descriptor, &reply);
        if (status != STATUS_OK)
            break;
        for (size_t i = 0; i < reply->n_jobs; i++)
            json_array_append_new(rows, job_json(reply->jobs[i]));
        free(token);
        token = mem_strdup(reply->next_page_token);
        rpc_message_free(reply);
    } while (token[0] != 0 && !command_interrupted);
    free(token);
    static const char *const columns[] = {"id", "state", "model", "priority", "total", "succeeded",
                                          "failed", "completion_tokens"};
    if (status == STATUS_OK && command.json)
        output_json(rows, false);
    else if (status == STATUS_OK)
        output_table(columns, sizeof columns / sizeof *columns, rows);
    json_decref(rows);
    end(&command);
    return status;
}

/* Get and Cancel: one id in, one job out. */
static status_t one_job(jobs_command_t *command, const char *method, const void *request)
{
    Shoal__V1__Job *job = NULL;
    status_t status = client_call(command->client, method, request, &shoal__v1__job__descriptor, &job);
    if (status == STATUS_OK)
        job_print(job, command->json);
    rpc_message_free(job);
    end(command);
    return status;
}

status_t command_jobs_get(int argc, char **argv)
{
    jobs_command_t command = {0};
    TRY(begin(&command, argc, argv, "shoal jobs get ID", "Shows a job.", "shoal jobs get 4f0c…", true));
    if (command.done)
        return STATUS_OK;
    Shoal__V1__GetJobRequest request = SHOAL__V1__GET_JOB_REQUEST__INIT;
    request.id = command.id;
    return one_job(&command, "/shoal.v1.Jobs/Get", &request);
}

status_t command_jobs_cancel(int argc, char **argv)
{
    jobs_command_t command = {0};
    TRY(begin(&command, argc, argv, "shoal jobs cancel ID",
              "Cancels a job. Results that exist stay; what runs is stopped.", "shoal jobs cancel 4f0c…", true));
    if (command.done)
        return STATUS_OK;
    Shoal__V1__CancelJobRequest request = SHOAL__V1__CANCEL_JOB_REQUEST__INIT;
    request.id = command.id;
    return one_job(&command, "/shoal.v1.Jobs/Cancel", &request);
}

status_t command_jobs_delete(int argc, char **argv)
{
    jobs_command_t command = {0};
    TRY(begin(&command, argc, argv, "shoal jobs delete ID", "Removes a job and its results.",
              "shoal jobs delete 4f0c…", true));
    if (command.done)
        return STATUS_OK;
    Shoal__V1__DeleteJobRequest request = SHOAL__V1__DELETE_JOB_REQUEST__INIT;
    request.id = command.id;
    Shoal__V1__DeleteJobResponse *reply = NULL;
    status_t status = client_call(command.client, "/shoal.v1.Jobs/Delete", &request,
                                  &shoal__v1__delete_job_response__descriptor, &reply);
    if (status == STATUS_OK) {
        static const char *const columns[] = {"id", "state"};
        json_t *rows = json_pack("[{s:s,s:s}]", "id", command.id, "state", "deleted");
        if (command.json)
            output_json(json_array_get(rows, 0), false);
        else
            output_table(columns, sizeof columns / sizeof *columns, rows);
        json_decref(rows);
    }
    rpc_message_free(reply);
    end(&command);
    return status;
}

status_t command_jobs_watch(int argc, char **argv)
{
    jobs_command_t command = {0};
    TRY(begin(&command, argc, argv, "shoal jobs watch ID",
              "Follows a job until it ends; the exit code says whether all went well.",
              "shoal jobs watch 4f0c…", true));
    if (command.done)
        return STATUS_OK;
    Shoal__V1__Job *job = NULL;
    status_t status = job_watch(command.client, command.id, &job);
    if (status == STATUS_OK) {
        job_print(job, command.json);
        status = job_verdict(job);
    }
    rpc_message_free(job);
    end(&command);
    return status;
}

static status_t print_result(void *arg, Shoal__V1__ItemResult *take_result)
{
    const jobs_command_t *command = arg;
    json_t *object = result_json(take_result);
    if (command->json)
        output_json(object, true);
    else
        printf("--- %llu %s %s\n%s\n", (unsigned long long)take_result->index, take_result->custom_id,
               take_result->status, take_result->error ? take_result->error->message : take_result->text);
    json_decref(object);
    rpc_message_free(take_result);
    return ferror(stdout) ? output_written() : STATUS_OK;
}

status_t command_jobs_results(int argc, char **argv)
{
    jobs_command_t command = {0};
    TRY(begin(&command, argc, argv, "shoal jobs results ID",
              "Prints the results that exist, in the order of their completion; with -o json one line each.",
              "shoal jobs results 4f0c… -o json", true));
    if (command.done)
        return STATUS_OK;
    status_t status = job_results(command.client, command.id, false, print_result, &command);
    end(&command);
    return status;
}
