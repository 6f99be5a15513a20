// Feature detection: CPUID for the instructions, XCR0 for the registers the operating system keeps across a
// switch. Tile registers are given to a process that asks for them; the first question whether there is AMX
// asks. Any thread.
#include "kernels/cpu.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XCR0_AVX    0x06u
#define XCR0_AVX512 0xe6u
#define XCR0_AMX    0x60000u

// arch_prctl(2): permission to use a register state that is switched on by process (Linux 5.16).
#define REQ_XCOMP_PERM    0x1023
#define XFEATURE_TILEDATA 18

struct features {
    uint32_t l1_ecx, l7_ebx, l7_ecx, l7_edx, l71_eax, xcr0;
};

static struct features features_read(void)
{
    struct features f = {0};
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(1, 0, &a, &b, &f.l1_ecx, &d))
        return f;
    if (f.l1_ecx & bit_OSXSAVE) {
        uint32_t hi;
        __asm__ volatile("xgetbv" : "=a"(f.xcr0), "=d"(hi) : "c"(0));
    }
    if (__get_cpuid_count(7, 0, &a, &f.l7_ebx, &f.l7_ecx, &f.l7_edx))
        __get_cpuid_count(7, 1, &f.l71_eax, &b, &c, &d);
    return f;
}

static bool has_all(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

// Asking again does no harm; threads inherit the permission.
static bool tiles_permitted(void)
{
    return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XFEATURE_TILEDATA) == 0;
}

bool cpu_has(enum isa i)
{
    struct features f = features_read();
    bool avx2 = has_all(f.xcr0, XCR0_AVX) && has_all(f.l1_ecx, bit_AVX | bit_FMA | bit_F16C) &&
                has_all(f.l7_ebx, bit_AVX2);
    bool avx512 = avx2 && has_all(f.xcr0, XCR0_AVX512) &&
                  has_all(f.l7_ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
    bool bf16 = avx512 && has_all(f.l71_eax, 1u << 5) && has_all(f.l7_ecx, bit_AVX512VBMI);
    bool amx =
        bf16 && has_all(f.xcr0, XCR0_AMX) && has_all(f.l7_edx, 1u << 22 | 1u << 24); // AMX-BF16, AMX-TILE
    const bool has[] = {true, avx2, avx512, bf16, amx};
    return has[i] && (i != ISA_AMX || tiles_permitted());
}
#else
bool cpu_has(enum isa i)
{
    return i == ISA_REF;
}
#endif

bool cpu_built(enum isa i)
{
    switch (i) {
    case ISA_REF:
        return true;
#if OOZE_HAVE_AVX2
    case ISA_AVX2:
        return true;
#endif
#if OOZE_HAVE_AVX512
    case ISA_AVX512:
        return true;
#endif
#if OOZE_HAVE_AVX512BF16
    case ISA_AVX512BF16:
        return true;
#endif
#if OOZE_HAVE_AMX
    case ISA_AMX:
        return true;
#endif
    default:
        return false;
    }
}
