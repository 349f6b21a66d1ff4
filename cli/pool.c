#include "pool.h"

#include <stdlib.h>
#include <string.h>

struct entry {
    char *key;
    struct adapter_file *file;
    struct adapter *adapter;
    size_t bytes;
    int held;
    uint64_t used; /* when, by the pool's own count */
};

struct pool {
    struct entry *entry; /* [facts.n] */
    int room;
    size_t limit;
    uint64_t clock;
    struct pool_facts facts;
    void (*gone)(void *user, const struct adapter *a);
    void *user;
};

int pool_open(struct pool **out, size_t limit, void (*gone)(void *user, const struct adapter *a),
              void *user, struct err *err)
{
    struct pool *p = calloc(1, sizeof *p);
    *out = p;
    if (!p)
        return err_nomem(err, sizeof *p);
    p->limit = limit;
    p->gone = gone;
    p->user = user;
    return 0;
}

static void drop(struct pool *p, int i)
{
    struct entry *e = &p->entry[i];
    p->gone(p->user, e->adapter);
    adapter_free(e->adapter);
    adapter_file_close(e->file);
    free(e->key);
    p->facts.bytes -= e->bytes;
    p->facts.freed++;
    *e = p->entry[--p->facts.n];
}

void pool_clear(struct pool *p)
{
    for (int i = p->facts.n - 1; i >= 0; i--)
        if (!p->entry[i].held)
            drop(p, i);
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    while (p->facts.n)
        drop(p, p->facts.n - 1);
    free(p->entry);
    free(p);
}

bool pool_find(struct pool *p, const char *key, struct adapter_file **file,
               struct adapter **adapter)
{
    for (int i = 0; i < p->facts.n; i++) {
        struct entry *e = &p->entry[i];
        if (strcmp(e->key, key))
            continue;
        e->held++;
        e->used = ++p->clock;
        p->facts.found++;
        *file = e->file;
        *adapter = e->adapter;
        return true;
    }
    return false;
}

bool pool_room(struct pool *p, size_t bytes)
{
    bool held = false;
    for (int i = 0; i < p->facts.n; i++)
        held = held || p->entry[i].held;
    while (p->facts.bytes + bytes > p->limit) {
        int oldest = -1;
        for (int i = 0; i < p->facts.n; i++)
            if (!p->entry[i].held && (oldest < 0 || p->entry[i].used < p->entry[oldest].used))
                oldest = i;
        if (oldest < 0)
            return !held;
        drop(p, oldest);
    }
    return true;
}

static size_t bytes_of(const struct entry *e)
{
    return adapter_bytes(e->adapter) + tensor_file_bytes(e->file->st);
}

void pool_count(struct pool *p)
{
    p->facts.bytes = 0;
    for (int i = 0; i < p->facts.n; i++) {
        struct entry *e = &p->entry[i];
        e->bytes = e->held ? bytes_of(e) : e->bytes;
        p->facts.bytes += e->bytes;
    }
    pool_room(p, 0);
    p->facts.most = p->facts.bytes > p->facts.most ? p->facts.bytes : p->facts.most;
}

static int grow(struct pool *p, struct err *err)
{
    size_t n = p->room ? 2 * (size_t)p->room : 16;
    if (p->facts.n < p->room)
        return 0;
    struct entry *more = realloc(p->entry, n * sizeof *more);
    if (!more)
        return err_nomem(err, n * sizeof *more);
    p->entry = more;
    p->room = (int)n;
    return 0;
}

int pool_add(struct pool *p, const char *key, struct adapter_file *file, struct adapter *adapter,
             struct err *err)
{
    struct entry e = {
        .key = strdup(key), .file = file, .adapter = adapter, .held = 1, .used = ++p->clock};
    if (!e.key || grow(p, err) < 0) {
        free(e.key);
        adapter_free(adapter);
        adapter_file_close(file);
        return err_nomem(err, 64);
    }
    p->entry[p->facts.n++] = e;
    p->facts.loaded++;
    pool_count(p);
    return 0;
}

void pool_give(struct pool *p, const struct adapter *adapter)
{
    for (int i = 0; i < p->facts.n; i++)
        if (p->entry[i].adapter == adapter) {
            p->entry[i].held--;
            return;
        }
}

struct pool_facts pool_facts(const struct pool *p)
{
    return p->facts;
}
