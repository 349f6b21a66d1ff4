/* shelf.h: what the subcommands that work on the repository share: opening it, printing its adapters.
 *
 *     struct shelf s = {0};
 *     rc = shelf_open(&s, REPO_READ, &err);
 *     rc = rc < 0 ? rc : repo_need(s.r, ref, &a, &err);
 *     …
 *     shelf_close(&s);
 */
#ifndef WEFT_SHELF_H
#define WEFT_SHELF_H

#include "cli.h"
#include "store/repo.h"

#include <jansson.h>

struct shelf {
    const char *home; /* --home */
    bool json, verbose;
    const char **rest; /* [n] what is no option; owned array of borrowed texts */
    int n;
    struct repo *r;
    struct progress bar;
};

/* The rows every such command has in its table of options. */
#define SHELF_OPTIONS(s)                                                                           \
    {"home",                                                                                       \
     0,                                                                                            \
     OPTION_TEXT,                                                                                  \
     &(s)->home,                                                                                   \
     "DIR",                                                                                        \
     "the repository; default: $WEFT_HOME, else $XDG_DATA_HOME/weft,\nelse ~/.local/share/weft",   \
     0,                                                                                            \
     0,                                                                                            \
     NULL},                                                                                        \
    {                                                                                              \
        "json", 0, OPTION_FLAG, &(s)->json, NULL, "JSON on stdout, an object a line", 0, 0, NULL   \
    }

/* Parses into o's targets and s->rest; least to most arguments that are no options (most -1: any). what:
 * how they are called, for the message. */
int shelf_parse(struct shelf *s, const struct option *o, int argc, char **argv, int least, int most,
                const char *what, struct err *err);
int shelf_open(struct shelf *s, enum repo_mode mode, struct err *err);
/* To write in when that can be, so that what is learnt is kept, else to read. */
int shelf_open_any(struct shelf *s, struct err *err);
/* Closes what is open. Returns the exit code of rc, after its message. */
int shelf_close(struct shelf *s, int rc, const struct err *err);

/* A progress callback; user is the shelf. Nonzero once the user asked to stop. */
int shelf_progress(void *user, int done, int total);

/* What finds the shelf's adapters by their weights (retrieve/find.h), all that fit the model read; m is filled, and its
 * repo is the shelf's: NULL before making_release. 1: no model is to be had, where none was named and it is not needed. */
struct finder;
struct making;
int shelf_finder(struct shelf *s, struct making *m, bool needed, struct finder **f,
                 struct err *err);

/* Says on stderr how many could not be compared by their weights, if any, and not under --json. */
void shelf_skipped(const struct shelf *s, int skipped);

/* s for a terminal: control characters as \n, \x1b, bytes that are no UTF-8 as \xff. One of a few
 * rotating buffers. NULL becomes "". */
const char *shown(const char *s);
/* s as JSON: as it is when it is UTF-8, else escaped as by shown. NULL becomes null. */
json_t *json_text(const char *s);
/* Prints a line of JSON and frees it. */
void json_line(json_t *j);
/* The escape sequence of a colour when stdout is a terminal, else "". "" ends one. */
const char *colour(const char *name);

/* All that `show` says of an adapter; r NULL: of a file that is in no repository. */
json_t *adapter_json(struct repo *r, const struct repo_adapter *a, struct err *err);
json_t *texts_json(const struct texts *t);
/* Prints what became of a file; user is the shelf. */
void shelf_event(void *user, const struct repo_event *e);
/* A line of a list. */
void adapter_line(const struct repo_adapter *a);

#endif
