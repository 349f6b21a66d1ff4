/* Places in the plane as clusters: quick shift. */
#include "layout.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

enum { NTH = 4 }; /* neighbour whose usual distance is what counts as near */

struct shift {
    const float *place; /* [n, 2] */
    int n;
    float near;     /* the kernel's width */
    float *density; /* [n] */
    int *up;        /* [n] the neighbour that is denser; itself: the middle of a cluster */
};

static float apart(const struct shift *s, int i, int j)
{
    return hypotf(s->place[2 * i] - s->place[2 * j], s->place[2 * i + 1] - s->place[2 * j + 1]);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Distance of the NTH neighbour of i, or of the last there is. */
static float nth(const struct shift *s, int i)
{
    float d[NTH + 1] = {0};
    int have = 0;
    for (int j = 0; j < s->n; j++) {
        float v = j == i ? INFINITY : apart(s, i, j);
        int at = have < NTH ? have : NTH;
        for (; at && d[at - 1] > v; at--)
            d[at] = d[at - 1];
        d[at] = v;
        have += have < NTH;
    }
    have -= s->n <= NTH; /* itself */
    return have ? d[have - 1] : 0;
}

/* The median of it. room [n]. */
static float usual(const struct shift *s, float *room)
{
    for (int i = 0; i < s->n; i++)
        room[i] = nth(s, i);
    qsort(room, (size_t)s->n, sizeof *room, by_value);
    return room[s->n / 2];
}

static bool denser(const struct shift *s, int i, int j)
{
    float a = s->density[i], b = s->density[j];
    return a > b || (a == b && i < j);
}

static void link_up(struct shift *s)
{
    float h = fmaxf(s->near, 1e-6f);
    for (int i = 0; i < s->n; i++) {
        double sum = 0;
        for (int j = 0; j < s->n; j++) {
            float d = apart(s, i, j) / h;
            sum += exp(-d * d / 2);
        }
        s->density[i] = (float)sum;
    }
    for (int i = 0; i < s->n; i++) {
        float best = 2 * h;
        s->up[i] = i;
        for (int j = 0; j < s->n; j++) {
            float d = apart(s, i, j);
            if (d < best && denser(s, j, i)) {
                best = d;
                s->up[i] = j;
            }
        }
    }
}

/* Numbers the trees, the largest first, among equals the one that comes first. count [n] is room. */
static int number(const struct shift *s, int *cluster, int *count)
{
    int clusters = 0;
    for (int i = 0; i < s->n; i++)
        count[i] = 0;
    for (int i = 0; i < s->n; i++) {
        int root = i;
        while (s->up[root] != root)
            root = s->up[root];
        cluster[i] = -1 - root; /* not yet numbered */
        count[root]++;
    }
    for (;;) {
        int best = -1;
        for (int i = 0; i < s->n; i++)
            if (count[i] && (best < 0 || count[i] > count[best]))
                best = i;
        if (best < 0)
            return clusters;
        for (int i = 0; i < s->n; i++)
            if (cluster[i] == -1 - best)
                cluster[i] = clusters;
        count[best] = 0;
        clusters++;
    }
}

int layout_clusters(const float *place, int n, int *cluster, float *density, struct err *err)
{
    size_t size = (size_t)n;
    float *room = calloc(2 * size + 1, sizeof *room);
    int *up = calloc(2 * size + 1, sizeof *up), clusters = 0;
    struct shift s = {.place = place, .n = n, .density = room ? room + size : NULL, .up = up};
    if (room && up && n) {
        s.near = usual(&s, room);
        link_up(&s);
        clusters = number(&s, cluster, up + size);
        for (int i = 0; density && i < n; i++)
            density[i] = s.density[i];
    }
    int rc = room && up ? clusters : err_nomem(err, 4 * size * sizeof *room);
    free(room);
    free(up);
    return rc;
}
