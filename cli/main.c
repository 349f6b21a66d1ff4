/* weft: the program. One file a subcommand; this one finds it. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

const struct command *const commands[] = {&command_render,
                                          &command_batch,
                                          &command_jobs,
                                          &command_compare,
                                          &command_search,
                                          &command_learn,
                                          &command_add,
                                          &command_sync,
                                          &command_list,
                                          &command_show,
                                          &command_tag,
                                          &command_rm,
                                          &command_gc,
                                          &command_export,
                                          &command_verify,
                                          &command_model,
                                          &command_similar,
                                          &command_dupes,
                                          &command_combine,
                                          &command_resize,
                                          &command_which,
                                          &command_catalog,
                                          &command_preview,
                                          &command_map,
                                          &command_profile,
                                          &command_clash,
                                          &command_gates,
                                          &command_score,
                                          &command_bench,
                                          &command_help,
                                          NULL};

/* GNU's OpenMP lets a thread that waits for the others spin for milliseconds. On a machine that is busy
 * with something else as well, that made a picture take twenty times as long (20 s instead of 0.9). A
 * short spin costs nothing on a quiet one. It reads its settings before main, so this starts again. */
static void wait_briefly(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") ||
        setenv("GOMP_SPINCOUNT", "3000", 1))
        return;
    execv("/proc/self/exe", argv);
}

static bool is_help(const char *a)
{
    return !strcmp(a, "--help") || !strcmp(a, "-h");
}

static int run(int argc, char **argv)
{
    if (argc < 2 || is_help(argv[1]))
        return command_help.run(&command_help, 0, NULL);
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) {
        puts("weft " WEFT_VERSION);
        return EXIT_DONE;
    }
    /* `weft render --help` is `weft help render` */
    for (int i = 2; i < argc && strcmp(argv[i], "--"); i++)
        if (is_help(argv[i]))
            return command_help.run(&command_help, 2, argv);
    for (int i = 0; commands[i]; i++)
        if (!strcmp(argv[1], commands[i]->name))
            return commands[i]->run(commands[i], argc - 1, argv + 1);
    return command_help.run(&command_help, 2, argv);
}

int main(int argc, char **argv)
{
    wait_briefly(argv);
    prctl(PR_SET_NAME, "weft"); /* not "exe", which is how it was started again */
    int rc = run(argc, argv);
    if (fflush(stdout) || ferror(stdout)) {
        fputs("weft: stdout cannot be written\n", stderr);
        return rc ? rc : EXIT_FAILED;
    }
    return rc;
}
