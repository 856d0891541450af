/* One line a fact, on standard error: time, level, program, words. Prompts and texts are never
 * logged, only their sizes and ids. The level comes from SHOAL_LOG (error|warn|info|debug). */
#ifndef SHOAL_COMMON_BASE_LOG_H
#define SHOAL_COMMON_BASE_LOG_H

typedef enum { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level_t;

/* Names the program (and the part of it) in each line; call once before threads start. */
void log_start(const char *program);

void log_at(log_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_at(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)

#endif
