/* How much an adapter changes, block by block. */
#include "norms.h"

#include "unet/loader.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define BAR 28

int norms_init(struct norms *n, const struct matrices *m)
{
    double all = 0;
    memset(n, 0, sizeof *n);
    for (int i = 0; i < m->n; i++) {
        char name[32];
        double x = matrix_norm(&m->item[i].m);
        int k = 0;
        site_block(name, sizeof name, m->item[i].site);
        while (k < n->n && strcmp(n->block[k].name, name))
            k++;
        if (k == NORMS_MAX)
            continue;
        if (k == n->n)
            snprintf(n->block[n->n++].name, sizeof n->block->name, "%s", name);
        n->block[k].norm += x * x;
        all += x * x;
    }
    for (int k = 0; k < n->n; k++)
        n->block[k].norm = sqrt(n->block[k].norm);
    n->all = sqrt(all);
    return n->n;
}

void norms_print(const struct norms *n)
{
    double most = 0;
    for (int k = 0; k < n->n; k++)
        most = fmax(most, n->block[k].norm);
    for (int k = 0; k < n->n && most > 0; k++) {
        int bar = (int)(n->block[k].norm / most * BAR + 0.5);
        printf("    %-20s %9.3g  ", n->block[k].name, n->block[k].norm);
        for (int i = 0; i < bar; i++)
            fputs("▪", stdout);
        putchar('\n');
    }
}
