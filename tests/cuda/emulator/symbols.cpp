/* symbols.cpp: what the program's table of symbols says: names of kernels, and where their static shared memory is. */
#include "emulator.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>
#include <map>
#include <stdio.h>
#include <stdlib.h>

namespace {

struct symbols {
    std::vector<emulator_piece> shared;
    std::map<size_t, std::string> functions;
    std::map<const void *, size_t> sums;
    std::map<const void *, std::string> plain;
    size_t base = 0;
};

int first_module(dl_phdr_info *info, size_t, void *got)
{
    *(dl_phdr_info *)got = *info;
    return 1;
}

dl_phdr_info module(void)
{
    dl_phdr_info info = {};
    dl_iterate_phdr(first_module, &info);
    return info;
}

/* Static variables of functions are called _ZZ<function>E<name>; thread-local ones are all __shared__. */
void read_symbols(symbols *to, const char *p, size_t n)
{
    const Elf64_Ehdr *h = (const Elf64_Ehdr *)p;
    if (n < sizeof *h || memcmp(h->e_ident, ELFMAG, SELFMAG) != 0)
        return;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(p + h->e_shoff);
    for (int i = 0; i < h->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB)
            continue;
        const Elf64_Sym *sym = (const Elf64_Sym *)(p + sections[i].sh_offset);
        const char *names = p + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *sym; k++) {
            const char *name = names + sym[k].st_name;
            int type = ELF64_ST_TYPE(sym[k].st_info);
            if (type == STT_TLS && sym[k].st_shndx && strncmp(name, "_ZZ", 3) == 0)
                to->shared.push_back({sym[k].st_value, sym[k].st_size, name});
            if (type == STT_FUNC && sym[k].st_shndx)
                to->functions[sym[k].st_value] = name;
        }
    }
}

symbols &program(void)
{
    static symbols *s = NULL;
    if (s)
        return *s;
    s = new symbols;
    s->base = module().dlpi_addr;
    FILE *f = fopen("/proc/self/exe", "rb");
    std::vector<char> bytes;
    if (f) {
        char part[65536];
        for (size_t got; (got = fread(part, 1, sizeof part, f)) > 0;)
            bytes.insert(bytes.end(), part, part + got);
        fclose(f);
    }
    read_symbols(s, bytes.data(), bytes.size());
    return *s;
}

} // namespace

const std::vector<emulator_piece> &emulator_shared_pieces(void)
{
    return program().shared;
}

unsigned char *emulator_thread_locals(void)
{
    return (unsigned char *)module().dlpi_tls_data;
}

const char *emulator_name(const void *function)
{
    auto known = program().plain.find(function);
    if (known != program().plain.end())
        return known->second.c_str();
    auto at = program().functions.find((size_t)function - program().base);
    if (at == program().functions.end())
        return "a kernel";
    if (at->second.compare(0, 2, "_Z") == 0) {
        int rc;
        char *plain = abi::__cxa_demangle(at->second.c_str(), NULL, NULL, &rc);
        if (plain)
            program().plain[function] = plain;
        free(plain);
        if (rc == 0)
            return program().plain[function].c_str();
    }
    return at->second.c_str();
}

size_t emulator_static_shared(const void *kernel)
{
    symbols &s = program();
    auto known = s.sums.find(kernel);
    if (known != s.sums.end())
        return known->second;
    auto at = s.functions.find((size_t)kernel - s.base);
    size_t sum = 0;
    if (at != s.functions.end() && at->second.compare(0, 2, "_Z") == 0) {
        std::string prefix = "_ZZ" + at->second.substr(2) + "E";
        for (const emulator_piece &x : s.shared) {
            if (x.name.compare(0, prefix.size(), prefix) == 0)
                sum += x.size;
        }
    }
    return s.sums[kernel] = sum;
}
