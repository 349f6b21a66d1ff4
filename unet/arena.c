#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 64

unsigned arena_mark(const struct arena *a)
{
    return a->next;
}

/* Index before which a block of that size fits best; *at is where it begins. */
static size_t best_gap(const struct arena *a, size_t size, size_t *at)
{
    size_t best = a->n, best_size = SIZE_MAX, end = 0;
    for (size_t i = 0; i < a->n; i++) {
        size_t gap = a->live[i].at - end;
        if (gap >= size && gap < best_size) {
            best = i;
            best_size = gap;
            *at = end;
        }
        end = a->live[i].at + a->live[i].size;
    }
    if (best == a->n)
        *at = end;
    return best;
}

unsigned arena_take(struct arena *a, size_t bytes, size_t *offset)
{
    size_t size = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (a->n == a->cap) {
        size_t cap = a->cap ? 2 * a->cap : 64;
        struct arena_block *p = realloc(a->live, cap * sizeof *p);
        if (!p)
            return 0;
        a->live = p;
        a->cap = cap;
    }
    size_t i = best_gap(a, size, offset);
    memmove(a->live + i + 1, a->live + i, (a->n - i) * sizeof *a->live);
    a->live[i] = (struct arena_block){.at = *offset, .size = size, .id = a->next ? a->next : 1};
    a->next = a->live[i].id + 1;
    a->n++;
    if (*offset + size > a->peak)
        a->peak = *offset + size;
    return a->live[i].id;
}

/* Index of a block, a->n: there is none. */
static size_t find(const struct arena *a, unsigned id)
{
    size_t i = 0;
    while (i < a->n && a->live[i].id != id)
        i++;
    return i;
}

void arena_drop(struct arena *a, unsigned id)
{
    size_t i = find(a, id);
    if (i == a->n)
        return;
    if (a->live[i].held)
        a->live[i].gone = true;
    else
        memmove(a->live + i, a->live + i + 1, (--a->n - i) * sizeof *a->live);
}

void arena_hold(struct arena *a, unsigned id)
{
    size_t i = find(a, id);
    if (i < a->n)
        a->live[i].held++;
}

void arena_let(struct arena *a, unsigned id)
{
    size_t i = find(a, id);
    if (i < a->n && --a->live[i].held == 0 && a->live[i].gone)
        arena_drop(a, id);
}

void arena_pop(struct arena *a, unsigned mark)
{
    size_t k = 0;
    for (size_t i = 0; i < a->n; i++) {
        bool ours = a->live[i].id >= mark;
        a->live[i].gone = a->live[i].gone || ours;
        if (!ours || a->live[i].held)
            a->live[k++] = a->live[i];
    }
    a->n = k;
}

void arena_clear(struct arena *a)
{
    a->n = 0;
    a->next = 1;
}

void arena_release(struct arena *a)
{
    free(a->live);
    memset(a, 0, sizeof *a);
}
