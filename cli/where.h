/* where.h: --where, which says what adapters are looked at.
 *
 *     rc = where_check(c.where, &err);                        // the command line alone
 *     …
 *     rc = where_holds(repo, c.where, &adapter, &yes, &err);
 */
#ifndef WEFT_WHERE_H
#define WEFT_WHERE_H

#include "cli.h"
#include "store/repo.h"

/* The row in a command's table of options; to: const char **. */
#define WHERE_OPTION(to)                                                                           \
    {                                                                                              \
        "where", 0, OPTION_TEXT, to, "KEY:VALUE",                                                  \
            "only those of a tag, kind, base or category, such as tag:style", 0, 0, NULL           \
    }

/* ERR_ARG for a key that is none. where NULL is no condition, here and below. */
int where_check(const char *where, struct err *err);
/* Whether the adapter is one of those. where has been checked. */
int where_holds(struct repo *r, const char *where, const struct repo_adapter *a, bool *yes,
                struct err *err);

#endif
