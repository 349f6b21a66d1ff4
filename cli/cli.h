/* cli.h: what the subcommands share. Only cli/ prints and exits.
 *
 * A subcommand is one file with one function: parse, call the library, print. Its options are one
 * table, which the parser reads and `weft help NAME` prints, so that help cannot fall behind.
 */
#ifndef WEFT_CLI_H
#define WEFT_CLI_H

#include "unet/err.h"

#include <stdbool.h>
#include <stdint.h>

#define WEFT_VERSION "0.1.0"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

enum option_kind {
    OPTION_FLAG,   /* bool *: set */
    OPTION_TEXT,   /* const char **: borrowed from argv */
    OPTION_INT,    /* int *, within min … max */
    OPTION_MAYBE,  /* the same, but only as --name=N; --name alone is -1 */
    OPTION_U64,    /* uint64_t * */
    OPTION_NUMBER, /* double *, within min … max */
    OPTION_SIZE,   /* int[2]: 512 or 512x768 (width x height) */
    OPTION_LIST,   /* struct option_list *: may be given several times */
    OPTION_GROUP,  /* not an option: a heading in the help */
};

struct option_list {
    const char **item; /* owned array of borrowed texts */
    int n;
};

#define OPTIONS_MAX 64 /* in one command's table, with its end */
struct option {
    const char *name; /* without "--" */
    char letter;      /* or 0 */
    enum option_kind kind;
    void *to;
    const char *arg;  /* how help names the value */
    const char *help; /* lines after the first are indented */
    double min, max;
    bool *given; /* set when the option occurs, or NULL */
};

/* Parses argv[1…argc), filling in the options' targets. What is no option goes to rest (argc places),
 * in order; "--" ends options. Errors are ERR_ARG. */
int options_parse(const struct option *o, int argc, char **argv, const char **rest, int *n_rest,
                  struct err *err);
void options_help(const struct option *o);

struct command {
    const char *name;
    const char *usage; /* "weft render PROMPT [options]" */
    const char *about; /* one line */
    int (*run)(const struct command *self, int argc, char **argv);
    /* For `weft help`: fills in o [at most OPTIONS_MAX] with where the values go in a struct of that size;
     * and what is said below the options. NULL: none. */
    void (*options)(struct option *o, void *target);
    size_t size;
    const char *more;
    void (*help)(void); /* prints what follows, of one that has more to say; or NULL */
};
extern const struct command command_render, command_score, command_bench, command_help, command_add,
    command_sync, command_list, command_show, command_tag, command_rm, command_gc, command_verify,
    command_search, command_learn, command_export, command_model, command_similar, command_dupes,
    command_combine, command_resize, command_which, command_catalog, command_compare,
    command_preview, command_profile, command_clash, command_map, command_gates, command_batch,
    command_jobs;
extern const struct command *const commands[]; /* NULL-terminated */

/* Prints "weft: MESSAGE" and gives the exit code: 2 when the command line is wrong, else 1. */
int cli_fail(const struct err *err);

/* A folder of assets/ ("model", "scorer"), found beside the program or installed; NULL where it is not. */
char *cli_asset(const char *name);

/* Set by Ctrl-C, kill and a closed terminal (SIGINT, SIGTERM, SIGHUP) after cli_catch_stop. */
void cli_catch_stop(void);
bool cli_stopped(void);

/* Seconds on a clock that only goes forward. */
double cli_now(void);

/* Bytes of memory the machine can still give, 0 where that is not known. */
uint64_t cli_memory_free(void);

/* A progress bar on stderr, drawn only on a terminal. */
struct progress {
    bool on;
    double began, shown;
};
void progress_start(struct progress *p);
void progress_show(struct progress *p, int done, int total);
void progress_end(struct progress *p);

/* "1.4 GB", "12 MB". */
const char *human_bytes(char *buf, size_t size, double bytes);

#endif
