#include "where.h"

#include <string.h>

static const char *const keys[] = {"tag:", "kind:", "base:", "category:", NULL};

static int key_of(const char *where)
{
    int k = 0;
    while (keys[k] && strncmp(keys[k], where, strlen(keys[k])))
        k++;
    return k;
}

int where_check(const char *where, struct err *err)
{
    if (where && !keys[key_of(where)])
        return err_set(err, ERR_ARG,
                       "--where takes tag:, kind:, base: or category: and a value, not '%.60s'",
                       where);
    return 0;
}

static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word), len;
    for (const char *p = words; *p; p += len + (p[len] == ' '))
        if ((len = strcspn(p, " ")) == n && !strncmp(p, word, n))
            return true;
    return false;
}

int where_holds(struct repo *r, const char *where, const struct repo_adapter *a, bool *yes,
                struct err *err)
{
    struct texts tags = {0};
    int k = where ? key_of(where) : 0, rc = 0;
    const char *value = where ? where + strlen(keys[k]) : "", *is = k == 2 ? a->base : a->category;
    *yes = !where || (k == 1 && has_word(a->kinds, value)) || (k > 1 && is && !strcmp(is, value));
    if (where && k == 0)
        rc = repo_texts(r, a->key, REPO_TAGS, &tags, err);
    for (int i = 0; i < tags.n; i++)
        *yes = *yes || !strcmp(tags.item[i], value);
    texts_release(&tags);
    return rc;
}
