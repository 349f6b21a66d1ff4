#include "cli.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int cli_fail(const struct err *err)
{
    fprintf(stderr, "weft: %s\n", err->msg);
    return err->code == ERR_ARG ? EXIT_USAGE : EXIT_FAILED;
}

char *cli_asset(const char *name)
{
    static const char *const beside[] = {"../assets", "../share/weft", "../../assets"};
    char exe[PATH_MAX], path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = 0;
        char *slash = strrchr(exe, '/');
        if (slash)
            *slash = 0;
        for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
            snprintf(path, sizeof path, "%s/%s/%s", exe, beside[i], name);
            char *real = realpath(path, NULL);
            if (real)
                return real;
        }
    }
    snprintf(path, sizeof path, "%s/%s", WEFT_PREFIX "/share/weft", name);
    return realpath(path, NULL);
}

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    (void)sig;
    if (stop) /* asked twice: at once. file_replace holds signals back while a file is half there. */
        _exit(130);
    stop = 1;
}

void cli_catch_stop(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction sa = {.sa_handler = on_signal}, old;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) /* nohup */
            sigaction(signals[i], &sa, NULL);
}

bool cli_stopped(void)
{
    return stop != 0;
}

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

uint64_t cli_memory_free(void)
{
    char line[200];
    unsigned long long kb = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb * 1024;
}

void progress_start(struct progress *p)
{
    p->on = isatty(STDERR_FILENO);
    p->began = cli_now();
    p->shown = 0;
}

void progress_show(struct progress *p, int done, int total)
{
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    double now = cli_now(), left = (now - p->began) / (done ? done : 1) * (total - done);

    if (!p->on || (done < total && now - p->shown < 0.1))
        return;
    p->shown = now;
    for (int i = 0; i < WIDTH; i++)
        bar[i] = i < done * WIDTH / total ? '#' : '.';
    bar[WIDTH] = 0;
    fprintf(stderr, "\r[%s] %d/%d  ", bar, done, total);
    if (done)
        fprintf(stderr, "%.0f s left ", left);
    fflush(stderr);
}

void progress_end(struct progress *p)
{
    if (p->on)
        fprintf(stderr, "\r\033[K");
}

const char *human_bytes(char *buf, size_t size, double bytes)
{
    if (bytes >= 1e9)
        snprintf(buf, size, "%.1f GB", bytes / 1e9);
    else if (bytes >= 1e6)
        snprintf(buf, size, "%.0f MB", bytes / 1e6);
    else
        snprintf(buf, size, "%.0f kB", bytes / 1e3);
    return buf;
}
