/* Vectors as places in the plane, and places as clusters. */
#include "retrieve/layout.h"
#include "tests/util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { CLUSTERS = 5, EACH = 20, N = CLUSTERS * EACH, DIM = 64 };

static void make_unit(float *x, int n, int dim)
{
    for (int i = 0; i < n; i++) {
        double s = 0;
        for (int k = 0; k < dim; k++)
            s += (double)x[i * dim + k] * x[i * dim + k];
        for (int k = 0; k < dim && s > 0; k++)
            x[i * dim + k] /= (float)sqrt(s);
    }
}

/* Around as many directions as there are clusters; i belongs to i % CLUSTERS. Cosines within are about
 * 1 / (1 + spread^2). */
static void clustered(float *x, int n, float spread, unsigned seed)
{
    float *middle = malloc(CLUSTERS * DIM * sizeof *middle);
    test_fill(middle, CLUSTERS * DIM, seed);
    test_fill(x, (size_t)n * DIM, seed + 1);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < DIM; k++)
            x[i * DIM + k] = middle[i % CLUSTERS * DIM + k] + spread * x[i * DIM + k];
    make_unit(x, n, DIM);
    free(middle);
}

static float apart(const float *p, int i, int j)
{
    return hypotf(p[2 * i] - p[2 * j], p[2 * i + 1] - p[2 * j + 1]);
}

/* Of the k nearest in the plane, those of the same cluster. */
static double same_near(const float *place, int n, int k)
{
    int same = 0;
    for (int i = 0; i < n; i++) {
        char *taken = calloc((size_t)n, 1);
        taken[i] = 1;
        for (int turn = 0; turn < k; turn++) {
            int best = -1;
            for (int j = 0; j < n; j++)
                if (!taken[j] && (best < 0 || apart(place, i, j) < apart(place, i, best)))
                    best = j;
            taken[best] = 1;
            same += best % CLUSTERS == i % CLUSTERS;
        }
        free(taken);
    }
    return (double)same / (n * k);
}

static void lay_out(const float *x, int n, int dim, const int *island, float *place)
{
    struct err err;
    cr_assert_eq(layout_plane(x, n, dim, island, NULL, NULL, place, &err), 0, "%s", err.msg);
    for (int i = 0; i < 2 * n; i++)
        cr_assert(isfinite(place[i]) && fabsf(place[i]) <= 1.0001f, "%d: %g", i, place[i]);
}

Test(layout, clusters_stay_together)
{
    static float x[N * DIM], place[2 * N];
    for (unsigned seed = 1; seed <= 5; seed++) {
        clustered(x, N, .7f, 10 * seed);
        lay_out(x, N, DIM, NULL, place);
        double same = same_near(place, N, 5);
        cr_expect_geq(same, .95, "seed %u: %g", seed, same);
    }
}

/* The same places for any number of threads, and whatever was laid out before. */
Test(layout, is_the_same_again)
{
    static float x[N * DIM], one[2 * N], two[2 * N];
    clustered(x, N, 1, 7);
    omp_set_num_threads(1);
    lay_out(x, N, DIM, NULL, one);
    omp_set_num_threads(3);
    lay_out(x, 30, DIM, NULL, two);
    lay_out(x, N, DIM, NULL, two);
    cr_expect_arr_eq(one, two, sizeof one);
}

Test(layout, few_and_equal)
{
    static float x[N * DIM], place[2 * N];
    struct err err;
    cr_expect_eq(layout_plane(NULL, 0, DIM, NULL, NULL, NULL, NULL, &err), 0);
    clustered(x, N, .7f, 3);
    for (int n = 1; n < 12; n++)
        lay_out(x, n, DIM, NULL, place);
    lay_out(x, 1, DIM, NULL, place);
    cr_expect(place[0] == 0 && place[1] == 0);
    lay_out(x, 2, DIM, NULL, place);
    cr_expect_float_eq(place[0], -place[2], 1e-6);
    cr_expect_float_eq(fabsf(place[0]), 1, 1e-6);
    for (int n = 1; n <= N; n = n < 8 ? n + 1 : n + 23) { /* all equal */
        for (int i = 0; i < n; i++)
            memcpy(x + i * DIM, x, DIM * sizeof *x);
        lay_out(x, n, DIM, NULL, place);
    }
    for (int i = 0; i < N; i++) /* two places, far apart */
        for (int k = 0; k < DIM; k++)
            x[i * DIM + k] = (float)(k == i % 2);
    lay_out(x, N, DIM, NULL, place);
    for (int i = 2; i < N; i++)
        cr_expect_lt(apart(place, i, i % 2), apart(place, i, 1 - i % 2), "%d", i);
    for (int i = 0; i < 9; i++)
        x[i] = (float)(i % 2 ? 1 : -1);
    lay_out(x, 9, 1, NULL, place); /* one dimension */
}

/* Islands lie apart whatever their vectors say; a number may have no adapter. */
Test(layout, islands_lie_apart)
{
    static float x[N * DIM], place[2 * N];
    static int island[N];
    clustered(x, N, 1, 5);
    for (int i = 0; i < N; i++)
        island[i] = i < 60 ? 0 : i < 90 ? 3 : i < 98 ? 1 : i == 98 ? 4 : 5;
    lay_out(x, N, DIM, island, place);
    float middle[6][2] = {{0}}, radius[6] = {0};
    int n[6] = {0};
    for (int i = 0; i < N; i++)
        n[island[i]]++;
    for (int i = 0; i < N; i++)
        for (int c = 0; c < 2; c++)
            middle[island[i]][c] += place[2 * i + c] / (float)n[island[i]];
    for (int i = 0; i < N; i++) {
        const float *m = middle[island[i]];
        radius[island[i]] =
            fmaxf(radius[island[i]], hypotf(place[2 * i] - m[0], place[2 * i + 1] - m[1]));
    }
    for (int a = 0; a < 6; a++)
        for (int b = 0; b < a; b++)
            if (n[a] && n[b])
                cr_expect_gt(hypotf(middle[a][0] - middle[b][0], middle[a][1] - middle[b][1]),
                             radius[a] + radius[b], "%d and %d", a, b);
}

static int stop_half_way(void *user, int done, int total)
{
    int *last = user;
    cr_assert(done >= *last && done <= total);
    *last = done;
    return 2 * done > total;
}

Test(layout, stops_when_asked)
{
    static float x[N * DIM], place[2 * N];
    struct err err;
    int last = 0;
    clustered(x, N, 1, 5);
    cr_expect_eq(layout_plane(x, N, DIM, NULL, stop_half_way, &last, place, &err), ERR_STOPPED);
}

Test(layout, clusters_are_found)
{
    static float x[N * DIM], place[2 * N], density[N];
    int cluster[N];
    struct err err;
    clustered(x, N, .4f, 9);
    lay_out(x, N, DIM, NULL, place);
    int n = layout_clusters(place, N, cluster, density, &err), pure = 0;
    cr_expect(n >= CLUSTERS && n <= 4 * CLUSTERS, "%d", n);
    for (int i = 0; i < N; i++) {
        cr_assert(cluster[i] >= 0 && cluster[i] < n && density[i] >= 1);
        for (int j = 0; j < i; j++)
            pure += cluster[i] != cluster[j] || i % CLUSTERS == j % CLUSTERS;
    }
    cr_expect_eq(pure, N * (N - 1) / 2, "no cluster has two kinds");
    cr_expect_eq(layout_clusters(place, 0, cluster, NULL, &err), 0);
    cr_expect_eq(layout_clusters(place, 1, cluster, NULL, &err), 1);
    memset(place, 0, sizeof place);
    cr_expect_eq(layout_clusters(place, N, cluster, density, &err), 1, "all at one place");
}
