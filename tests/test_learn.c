/* An encoder of one's own. */
#include "shell.h"
#include "util.h"

#include "retrieve/ridge.h"

#include <criterion/criterion.h>
#include <math.h>

/* x of a x = b, a [n, n] symmetric, by elimination. */
static void solve(double *a, double *b, int n)
{
    for (int p = 0; p < n; p++) {
        for (int i = p + 1; i < n; i++) {
            double s = a[i * n + p] / a[p * n + p];
            for (int j = p; j < n; j++)
                a[i * n + j] -= s * a[p * n + j];
            b[i] -= s * b[p];
        }
    }
    for (int p = n - 1; p >= 0; p--) {
        for (int j = p + 1; j < n; j++)
            b[p] -= a[p * n + j] * b[j];
        b[p] /= a[p * n + p];
    }
}

/* What is said of each example left out is what the others say of it when they alone are learnt from with the same
 * lambda, solved by elimination: to 1e-5. */
Test(learn, left_out_is_what_the_others_say)
{
    enum { N = 14, DIM = 5, OUT = 3 };
    float x[N * DIM], y[N * OUT], said[OUT];
    double k[N * N], all[N * N], mean = 0, row[N];
    struct ridge g;
    struct err err;
    test_fill(x, N * DIM, 1);
    test_fill(y, N * OUT, 2);
    for (int i = 0; i < N; i++)
        for (int c = 0; c < OUT; c++) /* something to learn */
            y[i * OUT + c] = .3f * y[i * OUT + c] + x[i * DIM + c] - x[i * DIM + c + 1];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double s = 0;
            for (int c = 0; c < DIM; c++)
                s += (double)x[i * DIM + c] * x[j * DIM + c];
            k[i * N + j] = all[i * N + j] = s;
            mean += i == j ? s / N : 0;
        }
    cr_assert_eq(ridge_fit(&g, k, y, N, OUT, &err), 0, "%s", err.msg);
    cr_expect_gt(g.lambda, 0);
    for (int out = 0; out < N; out++)
        for (int c = 0; c < OUT; c++) {
            double a[N * N], w[N], s = 0;
            int n = 0;
            for (int i = 0; i < N; i++) {
                if (i == out)
                    continue;
                int m = 0;
                for (int j = 0; j < N; j++)
                    if (j != out)
                        a[n * (N - 1) + m++] = all[i * N + j] + (i == j) * g.lambda * mean;
                w[n++] = y[i * OUT + c];
            }
            solve(a, w, N - 1);
            n = 0;
            for (int i = 0; i < N; i++)
                if (i != out)
                    s += all[out * N + i] * w[n++];
            cr_expect_float_eq(g.left_out[out * OUT + c], s, 1e-5, "%d %d", out, c);
        }
    for (int i = 0; i < N; i++)
        row[i] = all[3 * N + i];
    ridge_apply(&g, row, said);
    for (int c = 0; c < OUT; c++) /* seen, it is told better */
        cr_expect_lt(fabsf(said[c] - y[3 * OUT + c]), 1.f);
    ridge_release(&g);
    cr_expect_eq(ridge_fit(&g, k, y, 2, OUT, &err), ERR_ARG);
    ridge_release(&g);
    memset(k, 0, sizeof k);
    cr_expect_eq(ridge_fit(&g, k, y, N, OUT, &err), ERR_ARG);
    ridge_release(&g);
    k[0] = NAN;
    cr_expect_eq(ridge_fit(&g, k, y, N, OUT, &err), ERR_FORMAT);
    ridge_release(&g);
}

static void take(struct shell *s, const char *path, const char *name, const char *word)
{
    weft(s, "add", path, "--home", in(s, "home"), NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
    weft(s, "tag", name, "--no-triggers", "--class-word", word, "--home", in(s, "home"), NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
}

/* Adapters of words that say nothing to the model, each there twice, whole and at half its rank under another name: by
 * either's word the other is found, which nothing else tells; and a third, which has no word. */
Test(learn, words_of_ones_own)
{
    static const char *const what[][2] = {
        {"monkey", "blorp"},   {"skunk", "quindle"}, {"leopard", "zarf"}, {"gorilla", "mibble"},
        {"kite", "tronk"},     {"tower", "yuvex"},   {"bridge", "plisk"}, {"hospital", "gworf"},
        {"cucumber", "dlimp"}, {"teapot", "sprone"}};
    struct shell s;
    char path[120], name[16];
    shell_open(&s);
    take(&s, "assets/adapters/monkey.safetensors", "monkey", "blorp");
    weft(&s, "learn", "--home", in(&s, "home"), NULL);
    cr_expect_eq(s.code, 2);
    cr_expect(strstr(s.err, "at least 8") && strstr(s.err, "weft tag"), "%s", s.err);
    for (int i = 0; i < 10; i++) {
        snprintf(path, sizeof path, "assets/adapters/%s.safetensors", what[i][0]);
        take(&s, path, what[i][0], what[i][1]);
        snprintf(name, sizeof name, "x%d", i);
        snprintf(path, sizeof path, "%.60s/x%d.safetensors", s.dir, i);
        weft(&s, "resize", what[i][0], "--rank", "2", "-o", path, "--home", in(&s, "home"), NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        take(&s, path, name, what[i][1]);
    }
    weft(&s, "learn", "--home", in(&s, "home"), "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"adapters\":20"), "%s", s.out);
    cr_expect(strstr(s.out, "words in names") && strstr(s.out, "chance"), "%s", s.out);
    cr_expect(strstr(s.out, "\"kept\":true"), "%s", s.out);
    snprintf(path, sizeof path, "%.60s/new.safetensors", s.dir);
    weft(&s, "resize", "kite", "--rank", "3", "-o", path, "--home", in(&s, "home"), NULL);
    weft(&s, "add", path, "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    for (int turn = 0; turn < 2; turn++) { /* read from the file, then from what was kept */
        weft(&s, "search", "tronk", "--weights-only", "-k", "5", "--home", in(&s, "home"), NULL);
        cr_expect_eq(s.code, 0, "%s", s.err);
        cr_expect(strstr(s.out, "new") && strstr(s.out, "kite") && strstr(s.out, "x4"), "%s",
                  s.out);
    }
    weft(&s, "learn", "--forget", "--home", in(&s, "home"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "search", "tronk", "--weights-only", "-k", "5", "--home", in(&s, "home"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(!(strstr(s.out, "new") && strstr(s.out, "kite") && strstr(s.out, "x4")), "%s", s.out);
    shell_close(&s);
}
