// `ooze doctor`: what this machine has, what is missing, and what to do about it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/command.h"

static const char usage[] =
    "usage: ooze doctor [--config-docs]\n\n"
    "Says what this machine has for training and serving: processor features, cores, memory, shared memory, "
    "open\n"
    "files, our own programs.\n\n"
    "  --config-docs   print the reference of all configuration keys (docs/configuration.md) instead\n\n"
    "Exit codes: 0 a run can be started here, 1 something needed is missing.\n";

static int missing;

static void line(const char *verdict, const char *what, const char *text)
{
    printf("%-8s %-18s %s\n", verdict, what, text);
    if (!strcmp(verdict, "MISSING"))
        missing++;
}

static void check_processor(void)
{
    char text[256] = "";
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    bool bf16 = __builtin_cpu_supports("avx512bf16");
    char *info;
    struct error none;
    bool amx = false;
    if (!file_read("/proc/cpuinfo", 16 << 20, &info, NULL, &none)) {
        amx = strstr(info, " amx_bf16") != NULL;
        free(info);
    }
    snprintf(text, sizeof text, "AVX2 %s, AVX-512 %s, AVX-512 BF16 %s, AMX %s", avx2 ? "yes" : "no",
             avx512 ? "yes" : "no", bf16 ? "yes" : "no", amx ? "yes" : "no");
    line(avx2 ? "ok" : "slow", "processor", text);
#else
    line("slow", "processor", "not x86-64: the reference kernels are used");
    (void)text;
#endif
}

static void check_machine(void)
{
    char text[256];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    double gib = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / (1 << 30);
    snprintf(text, sizeof text, "%ld online", cores);
    line(cores >= 2 ? "ok" : "slow", "cores", text);
    snprintf(text, sizeof text, "%.1f GiB", gib);
    line(gib >= 2 ? "ok" : "low", "memory", text);
    struct statvfs v;
    if (statvfs("/dev/shm", &v) == 0) {
        double free_gib = (double)v.f_bavail * (double)v.f_frsize / (1 << 30);
        snprintf(text, sizeof text, "%.2f GiB free in /dev/shm%s", free_gib,
                 free_gib < 0.5 ? "; weights go through the run directory instead (docker run --shm-size)"
                                : "");
        line(free_gib < 0.5 ? "low" : "ok", "shared memory", text);
    } else {
        line("low", "shared memory", "no /dev/shm: weights go through the run directory");
    }
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    snprintf(text, sizeof text, "%llu, at most %llu%s", (unsigned long long)r.rlim_cur,
             (unsigned long long)r.rlim_max,
             r.rlim_max < 4096 ? "; raise it (ulimit -Hn) for many concurrent episodes" : "");
    line(r.rlim_max < 4096 ? "low" : "ok", "open files", text);
    line(file_exists("/dev/nvidia0") ? "note" : "ok", "GPU",
         file_exists("/dev/nvidia0") ? "an NVIDIA device is here; this build runs on the CPU"
                                     : "none (not needed)");
}

static void check_programs(void)
{
    static const char *const names[] = {"ooze-orchestrator", "ooze-trainer", "ooze-rollout"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[RUNCONFIG_PATH];
        struct error err;
        if (program_path(names[i], path, sizeof path, &err))
            line("MISSING", names[i], err.text);
        else
            line("ok", names[i], path);
    }
}

// A run here would find a folder for its sockets; what trying it made is removed again.
static void check_sockets(void)
{
    char dir[RUNCONFIG_PATH], path[256], made[RUNCONFIG_PATH + 8];
    struct error err;
    if (!getcwd(dir, sizeof dir))
        snprintf(dir, sizeof dir, ".");
    snprintf(made, sizeof made, "%s/sock", dir);
    bool there = access(made, F_OK) == 0;
    if (run_socket(dir, "orch", path, sizeof path, &err))
        line("MISSING", "sockets", err.text);
    else
        line("ok", "sockets", path);
    if (!there && rmdir(made) < 0)
        unlink(made); // a link to a short folder
}

int command_doctor(int argc, char **argv)
{
    bool docs = false;
    const struct option_spec specs[] = {{"config-docs", NULL, &docs}, {0}};
    int n, rc = options_parse("doctor", usage, specs, argc, argv, &n);
    if (rc >= 0)
        return rc;
    if (n) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    if (docs) {
        struct buf out = {0};
        runconfig_print_docs(&out);
        fwrite(out.data, 1, out.len, stdout);
        buf_done(&out);
        return EXIT_DONE;
    }
    check_processor();
    check_machine();
    check_sockets();
    check_programs();
    if (missing)
        printf("%d missing\n", missing);
    else
        printf("ready\n");
    return missing ? EXIT_FAILED : EXIT_DONE;
}
