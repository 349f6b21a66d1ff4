/* weft help [COMMAND] */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int explain(const struct command *c)
{
    struct option o[OPTIONS_MAX];
    void *target = c->options ? calloc(1, c->size) : NULL;
    if (target) {
        c->options(o, target);
        options_help(o);
    }
    free(target);
    if (c->more)
        printf("\n%s\n", c->more);
    if (c->help)
        c->help();
    return EXIT_DONE;
}

static int run(const struct command *self, int argc, char **argv)
{
    (void)self;
    if (argc < 2) {
        puts("weft: find, trust and combine your LoRAs; native, offline\n");
        for (int i = 0; commands[i]; i++)
            printf("  %-38s%s\n", commands[i]->usage, commands[i]->about);
        puts("\n`weft help COMMAND` is complete. `weft --version` says which this is.");
        return EXIT_DONE;
    }
    for (int i = 0; commands[i]; i++)
        if (!strcmp(argv[1], commands[i]->name)) {
            printf("%s\n\n%s\n", commands[i]->usage, commands[i]->about);
            return explain(commands[i]);
        }
    fprintf(stderr, "weft: no command '%.80s'; `weft help` lists them\n", argv[1]);
    return EXIT_USAGE;
}

const struct command command_help = {
    .name = "help",
    .usage = "weft help [COMMAND]",
    .about = "what a command does, with all its options",
    .run = run,
};
