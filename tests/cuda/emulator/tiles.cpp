/* tiles.cpp: what a warp does together: shuffles, products of tiles, matrices out of shared memory (device.cuh). */
#include "emulator.h"

void emulator_shuffle(void *const lane[32])
{
    emulator_shuffled *const *s = (emulator_shuffled *const *)lane;
    for (unsigned i = 0; i < 32; i++) {
        unsigned width = s[i]->width, by = s[i]->by, first, from;
        if (width == 0 || width > 32 || (width & (width - 1)) != 0)
            emulator_fail("a shuffle of width %u", width);
        if (width != s[0]->width || s[i]->mode != s[0]->mode)
            emulator_fail("a shuffle that differs within a warp");
        first = i & ~(width - 1);
        if (s[i]->mode == EMULATOR_FROM)
            from = first + (by & (width - 1));
        else if (s[i]->mode == EMULATOR_XOR)
            from = (i ^ by) < first + width ? i ^ by : i;
        else
            from = i + by < first + width && by < 32 ? i + by : i;
        s[i]->got = s[from]->value;
    }
}

static float half_value(unsigned u)
{
    return __half2float({(unsigned short)u});
}
static float bfloat16_value(unsigned u)
{
    return __bfloat162float({(unsigned short)u});
}

template <float (*value)(unsigned)> static void mma(void *const lane[32])
{
    emulator_product *const *p = (emulator_product *const *)lane;
    float a[16][16], bt[8][16];
    for (int i = 0; i < 32; i++) {
        int g = i / 4, q = i % 4;
        for (int k = 0; k < 2; k++) {
            a[g][2 * q + k] = value(p[i]->a[0] >> 16 * k);
            a[g + 8][2 * q + k] = value(p[i]->a[1] >> 16 * k);
            a[g][2 * q + 8 + k] = value(p[i]->a[2] >> 16 * k);
            a[g + 8][2 * q + 8 + k] = value(p[i]->a[3] >> 16 * k);
            bt[g][2 * q + k] = value(p[i]->b[0] >> 16 * k);
            bt[g][2 * q + 8 + k] = value(p[i]->b[1] >> 16 * k);
        }
    }
    for (int i = 0; i < 32; i++) {
        for (int k = 0; k < 4; k++) {
            const float *row = a[i / 4 + k / 2 * 8], *column = bt[i % 4 * 2 + k % 2];
            double sum = p[i]->d[k];
            for (int n = 0; n < 16; n++)
                sum += (double)row[n] * column[n];
            p[i]->d[k] = (float)sum;
        }
    }
}

void emulator_mma_half(void *const lane[32])
{
    mma<half_value>(lane);
}
void emulator_mma_bfloat16(void *const lane[32])
{
    mma<bfloat16_value>(lane);
}

static void ldmatrix(void *const lane[32], bool turned)
{
    emulator_rows *const *p = (emulator_rows *const *)lane;
    unsigned short m[32][8];
    for (int i = 0; i < 32; i++) {
        if ((uintptr_t)p[i]->row % 16 != 0)
            emulator_fail("ldmatrix: lane %d's row is not 16-byte aligned", i);
        if (!emulator_is_shared(p[i]->row, 16))
            emulator_fail("ldmatrix: lane %d's row is not in shared memory", i);
        memcpy(m[i], p[i]->row, 16);
    }
    for (int i = 0; i < 32; i++) {
        int g = i / 4, q = i % 4;
        for (int k = 0; k < 4; k++) {
            unsigned low = turned ? m[8 * k + 2 * q][g] : m[8 * k + g][2 * q];
            unsigned high = turned ? m[8 * k + 2 * q + 1][g] : m[8 * k + g][2 * q + 1];
            p[i]->r[k] = low | high << 16;
        }
    }
}

void emulator_ldmatrix(void *const lane[32])
{
    ldmatrix(lane, false);
}
void emulator_ldmatrix_turned(void *const lane[32])
{
    ldmatrix(lane, true);
}
