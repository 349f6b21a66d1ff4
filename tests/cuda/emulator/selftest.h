/* selftest.h: what the parts of selftest.cpp share. */
#ifndef WEFT_EMULATOR_SELFTEST_H
#define WEFT_EMULATOR_SELFTEST_H

#include "cublasLt.h"
#include "cudnn.h"
#include "device.cuh"

#include <functional>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

static int passed, failed;
static cudaStream_t stream;

static void check(bool good, const char *what)
{
    passed += good;
    failed += !good;
    if (!good)
        printf("FAILED: %s\n", what);
}

/* f() aborts and says `why`. */
static void dies(const char *why, const std::function<void()> &f)
{
    int fd[2];
    if (pipe(fd) != 0)
        return;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        dup2(fd[1], 2);
        f();
        _exit(0);
    }
    close(fd[1]);
    std::string text;
    char part[4096];
    for (ssize_t n; (n = read(fd[0], part, sizeof part)) > 0;)
        text.append(part, (size_t)n);
    close(fd[0]);
    int status;
    waitpid(pid, &status, 0);
    bool good = status != 0 && text.find(why) != std::string::npos;
    if (text.find("AddressSanitizer") == std::string::npos)
        good = good && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT &&
               text.find("emulator: ") != std::string::npos;
    check(good, why);
    if (!good)
        printf("    status %d, said: %s\n", status, text.c_str());
}

static unsigned seed = 1;
static float noise(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / (1 << 23) - 1;
}

static bool near(double a, double b, double by)
{
    return fabs(a - b) <= by * (1 + fabs(b));
}

template <class T> static T to(float v);
template <> float to<float>(float v)
{
    return v;
}
template <> __half to<__half>(float v)
{
    return __float2half_rn(v);
}
template <> __nv_bfloat16 to<__nv_bfloat16>(float v)
{
    return __float2bfloat16_rn(v);
}
static float from(float v)
{
    return v;
}
static float from(__half v)
{
    return __half2float(v);
}
static float from(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}

/* Device memory with values. */
template <class T> struct array {
    T *at;
    std::vector<T> host;

    explicit array(size_t n, bool random = true) : at(NULL), host(n)
    {
        cudaMalloc(&at, n * sizeof(T));
        for (T &v : host)
            v = to<T>(random ? noise() : 0);
        if (random)
            upload();
    }
    ~array()
    {
        cudaFree(at);
    }
    array(const array &) = delete;
    void upload()
    {
        cudaMemcpyAsync(at, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
    }
    void download()
    {
        cudaMemcpyAsync(host.data(), at, host.size() * sizeof(T), cudaMemcpyDeviceToHost, stream);
        cudaStreamSynchronize(stream);
    }
    double operator[](size_t i) const
    {
        return from(host[i]);
    }
};

#endif
