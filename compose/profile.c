#include "profile.h"

#include <complex.h>
#include <math.h>
#include <stdlib.h>

/* DFT of n values a stride apart, in place; buf has room for n. Latents are small: n^2 is fine. */
static void transform(double complex *x, int n, size_t stride, double complex *buf)
{
    for (int k = 0; k < n; k++) {
        buf[k] = 0;
        for (int i = 0; i < n; i++)
            buf[k] += x[(size_t)i * stride] * cexp(-2 * M_PI * I * ((double)((long)i * k % n) / n));
    }
    for (int k = 0; k < n; k++)
        x[(size_t)k * stride] = buf[k];
}

/* The signed frequency of bin k of n. */
static int frequency(int k, int n)
{
    return k < (n + 1) / 2 ? k : k - n;
}

/* H of the amplitudes, with p and count of radii [0, last]. */
static double high_share(const double complex *f, int h, int w, double cut, double *p, int *count,
                         int last)
{
    double most = 0, sum = 0;
    int n = 0;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            double u = frequency(y, h), v = frequency(x, w);
            int r = (int)sqrt(u * u + v * v);
            p[r] += cabs(f[(size_t)y * (size_t)w + (size_t)x]);
            count[r]++;
        }
    for (int r = 0; r <= last; r++) {
        p[r] = count[r] ? p[r] / count[r] : 0;
        most = p[r] > most ? p[r] : most;
    }
    for (int r = 0; r <= last; r++)
        if (count[r] && r >= cut * last) {
            sum += most > 0 ? p[r] / most : 0;
            n++;
        }
    return n ? sum / n : 0;
}

int profile_high(const float *x, int h, int w, int c, double cut, double *high, struct err *err)
{
    size_t places = (size_t)h * (size_t)w;
    int last = (int)sqrt(h * h / 4.0 + w * w / 4.0), side = h > w ? h : w;
    double complex *f = calloc(places + (size_t)side, sizeof *f);
    double *p = calloc((size_t)last + 2, sizeof *p);
    int *count = calloc((size_t)last + 2, sizeof *count);
    int rc = f && p && count ? 0 : err_nomem(err, places * sizeof *f);
    if (rc == 0) {
        for (size_t i = 0; i < places; i++)
            for (int k = 0; k < c; k++)
                f[i] += (double)x[i * (size_t)c + (size_t)k] / c;
        for (int y = 0; y < h; y++)
            transform(f + (size_t)y * (size_t)w, w, 1, f + places);
        for (int k = 0; k < w; k++)
            transform(f + k, h, (size_t)w, f + places);
        *high = high_share(f, h, w, cut, p, count, last);
    }
    free(f);
    free(p);
    free(count);
    return rc;
}
