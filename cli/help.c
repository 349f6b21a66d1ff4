/* weft help [COMMAND] */
#include "cli.h"

#include "compose/compose.h"

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

static void option_help(const struct compose_option *o)
{
    for (; o && o->key; o++) {
        char left[80];
        if (o->choice) {
            int usual = (int)o->usual; /* comes first */
            int n = snprintf(left, sizeof left, "%s=%s", o->key, o->choice[usual]);
            for (int i = 0; o->choice[i]; i++)
                if (i != usual)
                    n += snprintf(left + n, sizeof left - (size_t)n, "|%s", o->choice[i]);
        } else {
            snprintf(left, sizeof left, "%s=%g", o->key, o->usual);
        }
        printf("      %-21s ", left);
        for (const char *s = o->help; *s; s++) {
            putchar(*s);
            if (*s == '\n')
                printf("%28s", "");
        }
        putchar('\n');
    }
}

static int explain_compose(void)
{
    puts("How several adapters share a picture: --compose NAME[:key=value,...]; of choices the "
         "first is usual\n");
    for (int i = 0; compose_strategies[i]; i++) {
        const struct compose_strategy *s = compose_strategies[i];
        printf("  %-12s%s\n%s\n", s->name, s->about, s->more);
        option_help(s->option);
    }
    puts("  every one of them");
    option_help(compose_common);
    return EXIT_DONE;
}

static int run(const struct command *self, int argc, char **argv)
{
    (void)self;
    if (argc < 2) {
        puts("weft: find, trust and combine your LoRAs; native, offline\n");
        for (int i = 0; commands[i]; i++)
            printf("  %-40s%s\n", commands[i]->usage, commands[i]->about);
        puts("\n`weft help COMMAND` is complete. `weft --version` says which this is.");
        return EXIT_DONE;
    }
    if (!strcmp(argv[1], "compose"))
        return explain_compose();
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
